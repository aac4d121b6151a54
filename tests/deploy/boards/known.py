"""What of a panel's JSON is drawn: everything else is refused, so that no picture shows less than Grafana would."""

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

# Where a value is drawn, or has no meaning in a picture.
ANYTHING = [
    "type",
    "title",
    "description",
    "gridPos.*",
    "targets",
    "transformations",
    "datasource.*",
    "repeatDirection",
    "options.tooltip.*",
    "fieldConfig.defaults.unit",
    "fieldConfig.defaults.min",
    "fieldConfig.defaults.color.*",
    "fieldConfig.overrides",
    "fieldConfig.defaults.thresholds.steps",
    "options.xField",
    "options.series",
    "options.legend.calcs",
    "collapsed",
    "panels",
    "id",
    "fieldConfig.defaults.custom.fillOpacity",
    "fieldConfig.defaults.custom.lineWidth",
    "options.barWidth",
    "fieldConfig.defaults.custom.pointSize.fixed",
    "options.reduceOptions.calcs",
]
PROPERTIES = ("unit", "color", "custom.axisLabel", "custom.scaleDistribution", "custom.cellOptions")
# Where there is but one way of drawing, or two.
CHOICES: dict[str, tuple[Any, ...]] = {
    "transparent": (False,),
    "fieldConfig.defaults.thresholds.mode": ("absolute",),
    "fieldConfig.defaults.custom.thresholdsStyle.mode": ("dashed", "off"),
    "fieldConfig.defaults.custom.gradientMode": ("none",),
    "fieldConfig.defaults.custom.showPoints": ("never",),
    "fieldConfig.defaults.custom.show": ("points",),
    "options.legend.displayMode": ("table", "list"),
    "options.legend.placement": ("bottom",),
    "options.legend.showLegend": (True,),
    "options.mapping": ("auto",),
    "options.graphMode": ("none",),
    "options.colorMode": ("value",),
    "options.justifyMode": ("auto",),
    "options.orientation": ("auto", "horizontal"),
    "options.percentChangeColorMode": ("standard",),
    "options.showPercentChange": (False,),
    "options.textMode": ("auto",),
    "options.wideLayout": (True,),
    "options.reduceOptions.values": (False,),
    "options.barRadius": (0,),
    "options.fullHighlight": (False,),
    "options.groupWidth": (0.7,),
    "options.showValue": ("never",),
    "options.stacking": ("normal",),
    "options.xTickLabelMaxLength": (0,),
    "options.xTickLabelRotation": (0,),
    "options.xTickLabelSpacing": (0,),
}


def check(panel: dict[str, Any]) -> None:
    """Raise ValueError if a panel asks for anything that is not drawn here."""
    title = panel.get("title", panel["type"])
    for place, value in _leaves(panel, ""):
        if place in CHOICES and value not in CHOICES[place]:
            raise ValueError(f"{title}: {place} {value!r} cannot be drawn, only {CHOICES[place]}")
        if place not in CHOICES and not any(fnmatch(place, pattern) for pattern in ANYTHING):
            raise ValueError(f"{title}: {place} cannot be drawn: {value!r}")
    for override in panel.get("fieldConfig", {}).get("overrides", []):
        for change in override["properties"]:
            if change["id"] not in PROPERTIES:
                raise ValueError(f"{title}: an override of {change['id']} cannot be drawn")


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else key)
    else:
        yield place, value
