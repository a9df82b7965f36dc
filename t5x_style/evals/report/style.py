"""The page's style sheet: light, dark and print from one set of variables, no fonts fetched."""

# The tones are those of Okabe and Ito, darkened or lightened until they stand off the ground.
STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fdfdfc; --raised: #f3f3f0; --ink: #1d1f21; --soft: #5c6166; --hair: #dcdcd6;
  --link: #0b5cad; --warn: #8a4b00; --warnground: #fdf3e3;
  --tone0: #0072b2; --tone1: #c64f00; --tone2: #00795a; --tone3: #a8437f; --tone4: #6b6b6b;
}
@media (prefers-color-scheme: dark) { :root {
  --ground: #16181a; --raised: #202427; --ink: #e4e6e7; --soft: #a0a7ad; --hair: #373c40;
  --link: #7cb8ef; --warn: #f0b866; --warnground: #2d2417;
  --tone0: #5db4e8; --tone1: #f0894a; --tone2: #3cc39b; --tone3: #e28bbd; --tone4: #b4b4b4;
} }
@media print { :root {
  color-scheme: light;
  --ground: #fff; --raised: #f3f3f0; --ink: #000; --soft: #444; --hair: #bbb;
  --link: #000; --warn: #6b3a00; --warnground: #fff;
  --tone0: #0072b2; --tone1: #c64f00; --tone2: #00795a; --tone3: #a8437f; --tone4: #6b6b6b;
} }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 66rem;
  background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 1.5rem; }
h2 {
  font-size: 1.3rem; line-height: 1.3; letter-spacing: -.01em; margin: 0 0 .75rem;
  padding-top: 1.25rem; border-top: 1px solid var(--hair);
}
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0 .9rem; max-width: 44rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .9em; overflow-wrap: break-word; }
section { margin: 0 0 2.5rem; }
main { min-width: 0; }
.soft { color: var(--soft); }
.note {
  padding: .6rem .9rem; border-left: 3px solid var(--warn); background: var(--warnground);
  overflow-wrap: anywhere;
}
nav { font-size: .9rem; margin-bottom: 2rem; }
nav ol { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav .absent a { color: var(--soft); }
nav .absent a::after { content: " (not run)"; font-size: .85em; }
@media screen and (min-width: 62rem) {
  .columns { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 2.5rem; }
  nav { position: sticky; top: 1.5rem; align-self: start; margin: 0; padding-top: 1.25rem; }
  nav ol { flex-direction: column; gap: .35rem; }
  section:first-child h2 { border-top: 0; }
}
.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr));
  gap: .75rem; margin: 0 0 1rem;
}
.tiles div { background: var(--raised); border-radius: .4rem; padding: .7rem .9rem; }
.tiles dt { font-size: .8rem; color: var(--soft); line-height: 1.3; }
.tiles dd { margin: .15rem 0 0; font-size: 1.3rem; font-weight: 600; letter-spacing: -.01em; }
.tiles dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft);
  letter-spacing: 0; line-height: 1.35; }
.scroll { overflow-x: auto; margin: .75rem 0 1.25rem; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table {
  border-collapse: collapse; font-size: .9rem; line-height: 1.4; min-width: 100%;
  font-variant-numeric: tabular-nums lining-nums;
}
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .45rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(44rem, 100vw - 2.5rem); }
th, td { padding: .32rem 1rem .32rem 0; text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; border-bottom: 1px solid var(--soft); vertical-align: bottom; }
tbody th { font-weight: 400; min-width: 6rem; }
tbody tr + tr > * { border-top: 1px solid var(--hair); }
.num { text-align: right; }
td.num { white-space: nowrap; }
.bar {
  display: flex; align-items: center; gap: .6rem; min-width: 11rem; justify-content: flex-end;
}
.track { flex: 1; height: .7rem; min-width: 4rem; }
.fill {
  display: block; height: 100%; min-width: 1px; border-radius: 1px; background: currentColor;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
.barlabel { min-width: 4.5rem; text-align: right; }
figure { margin: 1rem 0 1.5rem; }
figcaption { font-size: .9rem; color: var(--soft); max-width: 44rem; }
.plot { margin: .25rem 0 .4rem; }
.chart { display: block; width: 100%; min-width: 34rem; max-width: 50rem; height: auto; }
.chart text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .label { fill: var(--ink); }
.chart .note-label { font-size: 11.5px; }
.middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--hair); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.rule { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.band { fill: var(--ink); opacity: 0; } .band1 { opacity: .055; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.thin { fill: none; stroke: currentColor; stroke-width: 1; opacity: .5; }
.area { fill: currentColor; opacity: .16; }
.cell { fill: currentColor; }
.pair { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); }
.pair .chart { min-width: 22rem; }
.mark { fill: currentColor; stroke: var(--ground); stroke-width: 1; }
.tone0 { color: var(--tone0); } .tone1 { color: var(--tone1); } .tone2 { color: var(--tone2); }
.tone3 { color: var(--tone3); } .tone4 { color: var(--tone4); }
.line.tone1 { stroke-dasharray: 7 3; } .line.tone2 { stroke-dasharray: 2 2.5; }
.line.tone3 { stroke-dasharray: 9 3 2 3; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0; padding: 0;
  font-size: .9rem;
}
.legend li { display: flex; align-items: center; gap: .45rem; }
.swatch { width: 26px; height: 12px; flex: none; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .25rem 0; }
summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
pre {
  background: var(--raised); border-radius: .4rem; padding: .9rem 1rem; margin: .5rem 0 1rem;
  font-size: .82rem; line-height: 1.5; overflow-x: auto;
}
.sample { margin: 0 0 1.5rem; }
.sample header { font-size: .85rem; color: var(--soft); margin-bottom: .3rem; }
.sample pre { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  max-height: 26rem; overflow-y: auto; }
.sample .prompt { color: var(--soft); }
.foreign {
  display: inline-block; max-width: 22rem; unicode-bidi: isolate; overflow-wrap: break-word;
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, caption, .legend { break-after: avoid; }
  figure, tr, .tiles div { break-inside: avoid; }
  .scroll { overflow: visible; break-inside: avoid; }
  .sample pre { max-height: none; overflow: visible; }
  .chart { min-width: 0; }
}
"""
