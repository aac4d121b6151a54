"""The same plan makes the same bits with any number of threads."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import json
import os
import sys
from compressor.process.threads import add_up_alike
add_up_alike()
import torch
from compressor import huggingface
from compressor.artifact.gpt2_config import GPT2Config
from compressor.huggingface import Checkpoint
from compressor.recipes.checkpoint import digest
from compressor.recipes.context import Context
from compressor.recipes.plans import Budget, Recipe
from tests.conftest import tiny_model
config = GPT2Config(vocab_size=300, n_positions=64, n_embd=48, n_layer=1, n_head=4, n_inner=144, eos_token_id=0)
embedded = huggingface.load(huggingface.EMBEDDED)
methods = {"quantize": {"codec": "int8"}, "svd": {"rank": 9}, "rotated_svd": {"rank": 9}, "tensorgpt": {"rank": 2},
           "ttm": {"rank": 5}, "gptq": {}, "whitened_svd": {"rank": 9}, "residual": {}, "joint_qk": {"rank": 6}}
plans = {name: Recipe(method=name, options=options) for name, options in methods.items()} | {"budget": Budget(ratio=8)}
found = {name: [] for name in plans}
for threads in (1, 2):
    torch.set_num_threads(threads)
    os.environ["XDG_CACHE_HOME"] = f"{sys.argv[1]}/{threads}"  # so that neither finds what the other has made
    context = Context(checkpoint=Checkpoint(tiny_model(config), embedded.tokenizer_json, embedded.source))
    for name, plan in plans.items():
        made = plan.make(context)
        found[name].append(digest(made.model, json.dumps(made.settings)))
print(json.dumps(found))
"""


def test_a_plan_makes_the_same_bits_with_one_thread_and_with_two(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", CODE, tmp_path], capture_output=True, text=True, check=True)
    assert len(list((tmp_path / "2" / "ttgpt").iterdir())) == len(list((tmp_path / "1" / "ttgpt").iterdir())) > 1
    for name, (one, two) in json.loads(run.stdout).items():
        assert one == two, name
