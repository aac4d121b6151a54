import subprocess
import sys
from pathlib import Path

url, model, folder = sys.argv[1:]
program = str(Path(sys.executable).with_name("guidellm"))
for route in ("/v1/completions", "/v1/chat/completions"):
    options = {
        "backend": f"kind=openai_http,target={url},model={model},request_format={route}",
        "profile": "kind=synchronous",
        "constraint": "kind=max_requests,count=3",
        "tokenizer": f"kind=hf_auto,model={folder}",
        "data": "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
        "output": "kind=json,path=benchmark.json",
    }
    told = [word for name, value in options.items() for word in (f"--{name}", value)]
    subprocess.run([program, "run", *told], check=True)
    assert '"successful":3' in Path("benchmark.json").read_text().replace(" ", "")
