"""The style of the page: system fonts, and colours for light and dark."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --card: #f4f6f8; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --c0: #59636e; --c1: #0b6bcb; --c2: #b4530b; --c3: #2c7a3f; --c4: #7a3fa0; --c5: #8a6d00; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --card: #1f242a; --ink: #e6e9ec; --soft: #a0a9b3; --line: #3a424b;
    --c0: #a0a9b3; --c1: #6db3ff; --c2: #f2a25c; --c3: #7fcf92; --c4: #cda6ee; --c5: #e0c050; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1240px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Liberation Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 0 0 6px; font-weight: 600; }
p.note { color: var(--soft); font-size: 13px; margin: 8px 0; max-width: 90ch; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px;
  flex: 1 1 190px; }
.card b { display: block; font-size: 24px; line-height: 1.3; }
.card span { color: var(--soft); font-size: 13px; }
.plots { display: flex; flex-wrap: wrap; gap: 20px; }
figure { margin: 0; max-width: 100%; }
svg { max-width: 100%; height: auto; display: block; font: 12px system-ui, "Liberation Sans", sans-serif; }
svg text { fill: var(--ink); }
svg .tick { fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .front { stroke: var(--c1); stroke-width: 1.5; stroke-dasharray: 5 4; fill: none; }
svg .label { paint-order: stroke; stroke: var(--ground); stroke-width: 3px; }
.s0 { fill: var(--c0); } .s1 { fill: var(--c1); } .s2 { fill: var(--c2); }
.s3 { fill: var(--c3); } .s4 { fill: var(--c4); } .s5 { fill: var(--c5); }
.l0, .l1, .l2, .l3, .l4, .l5 { fill: none; stroke-width: 2; }
.l0 { stroke: var(--c0); } .l1 { stroke: var(--c1); } .l2 { stroke: var(--c2); }
.l3 { stroke: var(--c3); } .l4 { stroke: var(--c4); } .l5 { stroke: var(--c5); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
th.right, td.right { text-align: right; white-space: nowrap; }
td.fold { white-space: normal; overflow-wrap: anywhere; min-width: 16em; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 16em; }
tr.strong td { font-weight: 600; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, .card { break-inside: avoid; } }
"""
