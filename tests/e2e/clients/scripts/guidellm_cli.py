import subprocess
import sys
from pathlib import Path

url, model, folder = sys.argv[1:]
program = str(Path(sys.executable).with_name("guidellm"))
subprocess.run(
    [
        *(program, "benchmark", "--target", url, "--model", model, "--processor", folder, "--rate-type", "synchronous"),
        *("--max-seconds", "5", "--data", "prompt_tokens=32,output_tokens=16", "--output-path", "benchmarks.json"),
    ],
    check=True,
)
assert Path("benchmarks.json").stat().st_size
