"""Footprint vs quality: what compression saved, and what it cost."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from panels import POD_BYTES, Text, board, choice, grid, lines, number, scatter, stacked_bars

M = 'model_name=~"$model"'
COMPONENTS = "max by (model_name, component)"
LOSS = ((None, "green"), (1.05, "yellow"), (1.5, "red"))
ABOVE = ((None, "green"), (0.05, "yellow"), (0.5, "red"))  # the same, of a perplexity above the dense model's
# Shades of one colour, so that none is taken for a model's.
PARTS = dict(
    zip(
        ("wte", "wpe", "attn", "mlp", "norm"),
        ("dark-blue", "semi-dark-blue", "blue", "light-blue", "super-light-blue"),
        strict=True,
    )
)
PHASES = {"read": "dark-orange", "prepare": "orange", "warm_up": "super-light-orange"}
POD = ((None, "green"), (POD_BYTES, "red"))
VOLUME = ((None, "green"), (4 << 30, "red"))  # of artefacts, in k8s/


def dashboard() -> Dashboard:
    """Return the dashboard."""
    made = board("Footprint vs quality", "ttgpt-footprint", "What compression saved, and what it cost.")
    made.with_variable(choice("component", "Component", "label_values(ttgpt_model_weight_bytes, component)"))
    for part in (_models, _memory, _cost):
        part(made)
    return made


def _of_model(series: str) -> str:
    """Return a recorded series of the chosen models without its name, which would be a column of the table."""
    return f"max by (model_name) ({series}{{{M}}})"


def _dense(expression: str) -> str:
    """Return a number as a series of the model "dense fp32"."""
    return f'label_replace({expression}, "model_name", "dense fp32", "", "")'


def _models(made: Dashboard) -> None:
    size, loss = _of_model("model:ttgpt_weight_bytes:disk"), _of_model("model:ttgpt_perplexity_ratio:max")
    made.with_row(Row("Models"))
    above = f"{loss} - 1"
    text = Text(
        title="Bytes against perplexity",
        description="One point per model, named below in its colour, and one for the largest of them as dense "
        "fp32. Down is better, left is smaller. 0 is the dense model's perplexity, 100 % twice that; the scale is "
        "logarithmic to both sides of 0, so that small differences are seen.",
        unit="percentunit",
        steps=ABOVE,
    )
    dense = f"max(model:ttgpt_dense_equivalent_bytes:sum{{{M}}})"
    made.with_panel(
        scatter(
            text,
            12,
            ("weights", "decbytes", f"{size} or {_dense(dense)}"),
            ("perplexity above dense", "percentunit", f"{above} or {_dense('vector(0)')}"),
        )
    )
    text = Text(
        title="Bytes of the chosen components against perplexity",
        description="The same for the components chosen above, such as wte, the token table. Where one component alone "
        "was compressed, this is what paid for it.",
        unit="percentunit",
        steps=ABOVE,
    )
    chosen = f'{COMPONENTS} (ttgpt_model_weight_bytes{{{M},component=~"$component",form="disk"}})'
    part = f"sum by (model_name) ({chosen})"
    made.with_panel(scatter(text, 12, ("weights", "decbytes", part), ("perplexity above dense", "percentunit", above)))
    text = Text(
        title="Quality and size",
        description="As measured when each artefact was made, on the text that its manifest names.",
        unit="short",
        steps=LOSS,
    )
    quality = {
        name: f'max by (model_name) (ttgpt_model_quality{{{M},metric="{metric}"}})'
        for name, metric in (
            ("perplexity", "perplexity"),
            ("KL, nats", "kl"),
            ("top-1", "top1_agreement"),
        )
    }
    columns = [
        ("weights", "decbytes", size),
        ("dense", "decbytes", _of_model("model:ttgpt_dense_equivalent_bytes:sum")),
        ("times smaller than fp32", "short", _of_model("model:ttgpt_compression:ratio")),
        ("times dense perplexity", "short", loss),
        ("perplexity", "short", quality["perplexity"]),
        ("KL, nats", "short", quality["KL, nats"]),
        ("top-1", "percentunit", quality["top-1"]),
    ]
    made.with_panel(grid(text, 24, columns, "times dense perplexity"))
    text = Text(
        title="Bytes per component",
        description="Weights on disk by part of the model: token table, positions, attention, MLP, norms. Red is "
        "the memory limit of the pods in k8s/.",
        unit="decbytes",
        steps=POD,
    )
    weights = f'{COMPONENTS} (ttgpt_model_weight_bytes{{{M},form="disk"}})'
    made.with_panel(stacked_bars(text, 12, weights, "component", PARTS))
    text = Text(
        title="The same, dense",
        description="What the same parts would take as dense fp32: compare the scale. Red as on the left.",
        unit="decbytes",
        steps=POD,
    )
    dense = f"{COMPONENTS} (ttgpt_model_dense_equivalent_bytes{{{M}}})"
    made.with_panel(stacked_bars(text, 12, dense, "component", PARTS))
    text = Text(
        title="Times smaller than fp32",
        description="Dense fp32 bytes over bytes of the weights; half of it against fp16.",
        unit="short",
        steps=((None, "yellow"), (2, "green")),
    )
    made.with_panel(number(text, 12, f"model:ttgpt_compression:ratio{{{M}}}", "{{model_name}}"))
    text = Text(
        title="Saved against fp16",
        description="Dense fp16 bytes of all chosen models, as most checkpoints have, less the bytes of their weights; "
        "red is a loss.",
        unit="decbytes",
        steps=((None, "red"), (0, "green")),
    )
    saved = f"sum(model:ttgpt_dense_equivalent_bytes:sum{{{M}}}) / 2 - sum(model:ttgpt_weight_bytes:disk{{{M}}})"
    made.with_panel(number(text, 6, saved))
    text = Text(
        title="Artefact",
        description="All files: weights, tokenizer, configuration and manifest. Red does not fit the volume of k8s/.",
        unit="decbytes",
        steps=VOLUME,
    )
    made.with_panel(number(text, 6, f"max by (model_name) (ttgpt_model_artifact_bytes{{{M}}})", "{{model_name}}"))


def _memory(made: Dashboard) -> None:
    made.with_row(Row("Memory"))
    text = Text(
        title="Memory against weights",
        description="Resident memory of each process, and of that what weights and caches take. The rest is "
        "interpreter, libraries and temporaries. Red is the memory limit of the pods in k8s/.",
        unit="decbytes",
        steps=POD,
    )
    queries = {
        "resident_memory__instance": "sum by (instance) (ttgpt_memory_rss_bytes)",
        "weights__instance": 'sum by (instance) (ttgpt_model_weight_bytes{form="resident"})',
        "KV_cache_at_most__instance": "sum by (instance) (ttgpt_kv_cache_bytes)",
        "cache_of_contractions__instance": "sum by (instance) (ttgpt_core_cache_bytes)",
    }
    made.with_panel(lines(text, 12, **queries))
    text = Text(
        title="Control group against its limit",
        description="Working set (without cached files) over the limit; above 90 % an alert fires, at 100 % the kernel "
        "kills. Empty where there is no limit.",
        unit="percentunit",
        steps=((None, "green"), (0.9, "red")),
    )
    made.with_panel(lines(text, 6, used__instance="instance:ttgpt_cgroup_memory:ratio"))
    text = Text(
        title="Beyond weights and caches",
        description="Resident memory less weights, KV caches and the cache of contractions; above 400 MB an alert "
        "fires.",
        unit="decbytes",
        steps=((None, "green"), (400e6, "red")),
    )
    made.with_panel(lines(text, 6, overhead__instance="instance:ttgpt_memory_overhead:bytes"))
    text = Text(
        title="Control group",
        description="Memory charged to the control group with its cached files, and its limit; red is that in k8s/.",
        unit="decbytes",
        steps=POD,
    )
    queries = {
        "current__instance": "ttgpt_cgroup_memory_current_bytes",
        "limit__instance": "ttgpt_cgroup_memory_limit_bytes",
    }
    made.with_panel(lines(text, 12, **queries))
    text = Text(
        title="Loading",
        description="Time that the start took by model and phase: reading, preparing, golden values.",
        unit="s",
        steps=((None, "green"), (60, "red")),
    )
    seconds = f"max by (model_name, phase) (ttgpt_model_load_seconds{{{M}}})"
    made.with_panel(stacked_bars(text, 12, seconds, "phase", PHASES))


def _cost(made: Dashboard) -> None:
    made.with_row(Row("What contraction costs"))
    for op, title, what in (
        ("head", "Contracting the head", "Multiplying the rows of one step by the cores of the output matrix."),
        ("rows", "Contracting rows", "Making those vectors of the token table of its cores that no cache has."),
    ):
        seconds, count, bucket = (
            f'rate(ttgpt_core_contraction_seconds_{kind}{{{M},op="{op}"}}[$__rate_interval])'
            for kind in ("sum", "count", "bucket")
        )
        text = Text(
            title=title,
            description=f"{what} Only models that have such cores. Mean time; the 95th percentile is of the buckets.",
            unit="s",
            steps=((None, "green"), (0.05, "red")),
        )
        counted = f"(sum by (model_name) ({count}) > 0)"
        mean = f"sum by (model_name) ({seconds}) / {counted}"
        p95 = f"histogram_quantile(0.95, sum by (model_name, le) ({bucket})) and {counted}"
        made.with_panel(lines(text, 12, mean__model_name=mean, p95__model_name=p95))
