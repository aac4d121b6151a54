import os
import subprocess
import sys
from pathlib import Path

url, model, *_ = sys.argv[1:]
home = Path("llm-home").absolute()
home.mkdir()
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: ours\n  model_name: {model}\n  api_base: {url}/v1\n"
    f"- model_id: ours-text\n  model_name: {model}\n  api_base: {url}/v1\n  completion: true\n"
)
program = str(Path(sys.executable).with_name("llm"))
for name in ("ours", "ours-text"):
    command = [program, "-m", name, "Where is the sea?", "-o", "max_tokens", "9"]
    environment = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "unused"}
    subprocess.run(command, check=True, env=environment)
    subprocess.run([*command, "--no-stream"], check=True, env=environment)
