"""Long runs fail before the first long step or not at all: what is wrong is said at once, what is done is kept."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.display import bar, left
from compressor.storage.run_folder import claimed, require_space
from tests.compressor.command import refused
from tests.compressor.storage.test_durable import files_of_at_most
from tests.conftest import tiny_model, write_artifact

ROOT = Path(__file__).parents[3]
LONG_STEPS = ("Sampling", "Collecting", "Estimating", "Measuring", "Healing", "Evaluating")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("The tide was out, and the boats leaned upon the hard; nobody had painted them. " * 200)
    return path


# What can be known before there is a model; each is tried with one that does not exist.
EARLY = {
    "no text": (["--method", "dense", "--text", "nowhere.txt"], "text: cannot read nowhere.txt"),
    "a folder for a text": (["--method", "dense", "--text", "{folder}"], "text: cannot read {folder}: Is a directory"),
    "no calibration text": (
        ["--preset", "tiny", "--calibration-text", "{file}", "--calibration-text", "nowhere.txt"],
        "calibration text: cannot read nowhere.txt",
    ),
    "no size": (["--budget", "much"], "budget must be a number of B, kB, MB or GB"),
    "a file for a healing folder": (
        ["--preset", "tiny", "--heal-folder", "{file}"],
        "heal_folder: cannot write to {file}: Not a directory",
    ),
    "no healing folder": (
        ["--preset", "tiny", "--heal-folder", "{file}/below"],
        "heal_folder: cannot write to {file}/below: Not a directory",
    ),
    "a healing folder without healing": (
        ["--method", "dense", "--heal-folder", "{folder}"],
        "heal_folder does not go without heal_tokens or heal_minutes",
    ),
    "no minutes": (["--preset", "tiny", "--heal-minutes", "-1"], "heal_minutes must be between 0.01 and 1000000"),
    "no tokens": (["--preset", "tiny", "--heal-tokens", "-1"], "heal_tokens must be between 0 and"),
    "existing": (["--preset", "tiny", "--out", "{folder}"], "exists already; choose another --out or add --force"),
    "not an artefact": (["--preset", "tiny", "--force", "--out", "{folder}"], "is not an artefact"),
    "below a file": (["--preset", "tiny", "--out", "{file}/out"], "out: cannot write to {file}: Not a directory"),
    "not writable": (["--preset", "tiny", "--out", "/proc/out"], "out: cannot write to /proc: "),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_needs_no_model_is_refused_before_it_is_loaded(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = EARLY[case]
    places = {"folder": tmp_path / "folder", "file": tmp_path / "file"}
    places["folder"].mkdir()
    (places["folder"] / "thesis").touch()
    places["file"].write_text("words")
    arguments = [option.format(**places) for option in options]
    out = [] if "--out" in options else ["--out", str(tmp_path / "a" / "b" / "new")]
    assert message.format(**places) in refused(["compress", "./nowhere", *out, *arguments], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


SHAPES = {
    "rank": (["--method", "whitened_svd", "--rank", "33"], "rank must be between 1 and 32, not 33"),
    "rank of any target": (
        ["--method", "direction_ae", "--rank", "33", "--target", "all"],
        "rank must be between 1 and 32, not 33",
    ),
    "kept entries": (["--method", "sparse_low_rank", "--rank", "4", "--kept", "33"], "kept must be between 1 and 32"),
    "rank of a head": (["--method", "joint_qk", "--rank", "9"], "rank must be between 1 and 8, not 9"),
    "heads": (["--method", "joint_qk", "--rank", "2", "--heads", "2"], "heads must be 4 as in the model, not 2"),
    "target": (["--method", "joint_qk", "--rank", "2", "--target", "mlp"], "target must be qkv for joint_qk"),
    "nothing to heal": (["--method", "dense", "--heal-minutes", "9"], "healing does not go with dense"),
    "a short text to heal on": (
        ["--ratio", "6", "--heal-tokens", "9999", "--calibration-text", "{short}"],
        "text must have at least 576 tokens to heal on",
    ),
    "an empty text": (["--ratio", "6", "--text", "{empty}"], "must have at least 2 tokens, not 0"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_what_the_model_decides_about_is_refused_before_the_first_long_step(
    case: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # every long step is drawn
    options, message = SHAPES[case]
    places = {"short": tmp_path / "short.txt", "empty": tmp_path / "empty.txt"}
    places["short"].write_text("The tide was out. " * 20)
    places["empty"].touch()
    arguments = [option.format(**places) for option in options]
    refusal = refused(["compress", checkpoint, "--out", tmp_path / "new", *arguments], capsys)
    assert message in refusal
    assert not any(step in refusal for step in LONG_STEPS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "short.txt"]


def test_a_picture_needs_a_place_before_the_service_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for png in (tmp_path / "missing" / "a.png", tmp_path / "file" / "a.png", Path("/proc/a.png")):
        refusal = refused(["dashboard", "--png", png, "--url", "http://127.0.0.1:1/metrics"], capsys)
        assert f"png: cannot write to {png.parent}: " in refusal
    refusal = refused(["dashboard", "--png", tmp_path, "--url", "http://127.0.0.1:1/metrics", "--force"], capsys)
    assert "is a folder" in refusal
    assert os.listdir(tmp_path) == ["file"]


def test_experiments_need_their_books_before_they_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "books: cannot read" in refused(["compare", "--rerun", "--books", tmp_path], capsys)


@pytest.mark.parametrize("command", ["compress", "export", "vocab set", "vocab add", "lm-eval-task"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    command: str, checkpoint: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_artifact(tmp_path / "made", tiny_model())
    before = stored.read(made).manifest
    new = ["--out", tmp_path / "new"]
    arguments: dict[str, list[object]] = {
        "compress": ["compress", checkpoint, "--method", "dense", "--text", words, *new],
        "export": ["export", made, *new],
        "vocab set": ["vocab", "set", made, "--token", " sea", "--like", " the"],
        "vocab add": ["vocab", "add", made, "--token", " seaworthiness", "--like", " the"],
        "lm-eval-task": ["lm-eval-task", *new],
    }
    with files_of_at_most(20_000):
        refusal = refused(arguments[command], capsys)
    place = made if command.startswith("vocab") else tmp_path / "new"
    assert refusal == f"error: {place}: File too large\n"
    assert os.listdir(tmp_path) == ["made"]
    assert stored.read(made).manifest == before


def test_a_disk_with_too_little_space_is_refused_with_both_figures(tmp_path: Path) -> None:
    require_space("out", tmp_path, 1)
    with pytest.raises(ValueError, match=r"^out: about 1,000,000,000,000\.0 MB are needed in .*, but .* MB are free$"):
        require_space("out", tmp_path, 10**18)


def _budget(checkpoint: Path, words: Path, out: Path) -> "subprocess.Popen[str]":
    """Start a budget as a process of its own."""
    options = ["--ratio", "6", "--target", "attn", "--calibration-text", words, "--text", words, "--out", out]
    command = [sys.executable, "-m", "compressor", "compress", *map(str, [checkpoint, *options])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["XDG_CACHE_HOME"] = str(_cache(out))
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def _cache(out: Path) -> Path:
    return out.parent / "caches" / out.name


def _measured(out: Path) -> list[Path]:
    return sorted((_cache(out) / "ttgpt").glob("budget-*-estimates-*.safetensors"))


def test_a_killed_budget_is_resumed_bit_for_bit_and_meanwhile_has_its_folder_for_itself(
    checkpoint: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with _budget(checkpoint, words, whole) as run:
        assert "resumes" not in run.communicate()[1]
    assert run.returncode == 0
    with _budget(checkpoint, words, killed) as run:
        while len(_measured(killed)) < 2:
            assert run.poll() is None
            time.sleep(0.005)
        refusal = refused(["compress", checkpoint, "--method", "dense", "--text", words, "--out", killed], capsys)
        assert f"out: another run is writing {killed}; wait for it or choose another folder" in refusal
        run.send_signal(signal.SIGKILL)
    kept = _measured(killed)
    times = {path: path.stat().st_mtime_ns for path in kept[1:]}
    kept[0].write_bytes(b"damaged")
    with _budget(checkpoint, words, killed) as run:
        said = run.communicate()[1]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert f"resumes: {len(kept) - 1} of 4 pieces were estimated before\n" in said
    assert (killed / artifact.WEIGHTS).read_bytes() == (whole / artifact.WEIGHTS).read_bytes()
    ours, theirs = (stored.read(folder).manifest.provenance.config for folder in (killed, whole))
    assert ours == theirs
    assert sorted(os.listdir(tmp_path)) == ["caches", "killed", "whole"]


def test_a_folder_is_held_by_one_run_and_given_back(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with claimed(out):
        with pytest.raises(ValueError, match="another run is writing"), claimed(out):
            pass
        with claimed(out.with_name("other")):
            pass
    assert os.listdir(tmp_path) == []
    with claimed(out) as folder:
        (folder / "kept").touch()
    with claimed(out) as folder:
        assert sorted(os.listdir(folder)) == ["kept", "lock"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_run_holds_nothing(number: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        with claimed(out):
            os.kill(os.getpid(), number)
            os._exit(0)
    os.waitpid(child, 0)
    with claimed(out):
        pass
    assert os.listdir(tmp_path) == []


def test_vocabularies_are_edited_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_artifact(tmp_path / "made", tiny_model())
    with claimed(made):
        refusal = refused(["vocab", "set", made, "--token", " sea", "--like", " the"], capsys)
    assert f"folder: another run is writing {made}" in refusal


@pytest.mark.parametrize(
    ("seconds", "done", "total", "words"),
    [
        (10.0, 0, 5, ""),
        (10.0, 1, 5, "40 seconds to go"),
        (90.0, 1, 21, "30 minutes to go"),
        (50.0, 5, 5, "0 seconds to go"),
    ],
)
def test_the_time_that_is_left_follows_from_what_is_done(seconds: float, done: int, total: int, words: str) -> None:
    assert left(seconds, done, total) == words


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_gives_every_item_and_tells_of_short_steps_only_on_a_terminal(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(bar(iter("abc"), label="Spelling", total=3)) == ["a", "b", "c"]
    assert ("Spelling" in capsys.readouterr().err) == is_terminal
