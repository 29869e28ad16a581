"""The style sheet of the HTML page: light and dark, from a phone to a wide screen, and on paper."""

from __future__ import annotations

__all__ = ["RAMP_STEPS", "style_sheet"]

#: Number of colours for curves, CSS classes c0, c1, ...
RAMP_STEPS = 24
#: Colours of the curves from the smallest to the largest size, each with its dark-theme twin.
_RAMP_LIGHT = ("#0a7f86", "#1f5fbf", "#6a45b8", "#b2338f", "#d9601a")
_RAMP_DARK = ("#4fd0d3", "#74b0ff", "#b09bff", "#f08fd0", "#ffb27a")

_THEME_LIGHT = """
--page:#f6f7f9;--card:#ffffff;--ink:#1b2330;--soft:#5b6675;--rule:#dfe3e9;--grid:#e6e9ee;
--accent:#1557b0;--good:#1a7f4b;--bad:#b3261e;--p50:#1557b0;--p99:#b26a00;--p999:#c2334d;
--max:#7c8594;
"""
_THEME_DARK = """
--page:#10141b;--card:#181e27;--ink:#e7ebf1;--soft:#9aa6b6;--rule:#2b3441;--grid:#262e3a;
--accent:#74b0ff;--good:#5fd39a;--bad:#ff8a80;--p50:#74b0ff;--p99:#f2b45a;--p999:#ff8fa3;
--max:#8793a3;
"""

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1320px;margin:0 auto;padding:28px 20px 56px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:40px 0 12px}
h3{font-size:1rem;margin:0 0 2px}
p{margin:0 0 10px}
.soft,figcaption,caption{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(215px,1fr));gap:14px;
margin:22px 0 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px 18px}
.tile b{display:block;font-size:1.7rem;line-height:1.25;font-weight:650;
font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.9rem}
.good b{color:var(--good)}.bad b{color:var(--bad)}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,540px),1fr));gap:16px}
figure{margin:0;min-width:0}
figcaption{font-size:.87rem;line-height:1.45;margin-bottom:8px}
figcaption h3{color:var(--ink)}
.wide{overflow-x:auto}
svg{display:block;width:100%;min-width:460px;height:auto;
font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow:visible}
svg text{fill:var(--soft);font-variant-numeric:tabular-nums}
svg .axis{font-size:12px;font-style:italic}
svg .grid{stroke:var(--grid);stroke-width:1}svg .faint{stroke-dasharray:1 4}
svg path{fill:none;stroke-linejoin:round;stroke-linecap:round}
.curve path,.line path{stroke:var(--color);stroke-width:1.9}
.curve .hit{stroke:transparent;stroke-width:12}
.curve .beyond{stroke-dasharray:2 4;opacity:.75}
.curve:hover path:not(.hit),.line:hover path{stroke-width:3.4}
.curve:hover .key,.line:hover .key{font-weight:700}
.line circle{fill:var(--card);stroke:var(--color);stroke-width:1.9}
.line circle:hover{fill:var(--color)}
svg .key{font-size:11.5px;fill:var(--ink)}
.p50{--color:var(--p50)}.p99{--color:var(--p99)}.p999{--color:var(--p999)}.max{--color:var(--max)}
.max path{stroke-dasharray:4 4}
table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:0 0 8px;font-size:.87rem}
th,td{padding:5px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
thead small{display:block;font-weight:400}
tbody th{font-weight:600;position:sticky;left:0;background:var(--card)}
tbody tr:last-child>*{border-bottom:0}
td.ok{color:var(--good)}td.wrong{color:var(--bad);font-weight:700}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:10px 28px;
margin:0}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;overflow-wrap:anywhere}
.read{columns:2 420px;column-gap:36px}.read p{break-inside:avoid}
.alert{border-left:5px solid var(--bad);margin-top:18px}
.table{margin-top:16px}
@media (max-width:600px){main{padding:18px 12px 40px}.card{padding:12px 13px}h1{font-size:1.4rem}
svg{font-size:15px}svg .axis{font-size:14px}svg .key{font-size:13px}}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""


def style_sheet() -> str:
    """Returns the whole style sheet."""
    light = f":root{{color-scheme:light dark;{_THEME_LIGHT}{_ramp(_RAMP_LIGHT)}}}"
    dark = f":root{{{_THEME_DARK}{_ramp(_RAMP_DARK)}}}"
    classes = "".join(f".c{i}{{--color:var(--c{i})}}" for i in range(RAMP_STEPS))
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}{_RULES}{classes}"


def _ramp(anchors: tuple[str, ...]) -> str:
    """Spreads the anchor colours over the steps, as CSS variables --c0, --c1, ..."""
    parts = []
    for step in range(RAMP_STEPS):
        place = step * (len(anchors) - 1) / (RAMP_STEPS - 1)
        lower = min(int(place), len(anchors) - 2)
        mixed = [
            round(a + (b - a) * (place - lower))
            for a, b in zip(_channels(anchors[lower]), _channels(anchors[lower + 1]), strict=True)
        ]
        parts.append("--c{}:#{:02x}{:02x}{:02x};".format(step, *mixed))
    return "".join(parts)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
