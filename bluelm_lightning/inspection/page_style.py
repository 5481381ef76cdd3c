"""Style and script of the page. The script is named by its hash in the page's policy: nothing else may run."""

STYLE = """
:root { color-scheme: light dark;
  --ground: #f4f5f8; --card: #fff; --ink: #1b2130; --quiet: #5a6376; --line: #dde1e9; --accent: #2c66dd;
  --learnt: #d3f2dd; --learnt-ink: #0a552a; --special: #ece5ff; --special-ink: #5b32bd; --image: #dfebfd;
  --image-ink: #1b4a92; --warn: #fff3d6; --warn-ink: #6e4a00 }
@media (prefers-color-scheme: dark) { :root {
  --ground: #11141a; --card: #1a1f29; --ink: #e5e8ef; --quiet: #9ba5b7; --line: #2d3543; --accent: #7aa5ff;
  --learnt: #133f2a; --learnt-ink: #92e6b4; --special: #2b2352; --special-ink: #c8b7ff; --image: #16304f;
  --image-ink: #a3ccff; --warn: #3b2f10; --warn-ink: #ffd98a } }
* { box-sizing: border-box }
[hidden] { display: none !important }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .75rem }
h3 { font-size: 1rem; margin: 0 } p { margin: .25rem 0 } .quiet { color: var(--quiet); font-size: .87rem }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .4rem; align-items: center;
  padding: .6rem 0; margin-top: .75rem; background: var(--ground) }
nav button { font: inherit; font-size: .87rem; color: var(--ink); background: var(--card); max-width: 100%;
  border: 1px solid var(--line); border-radius: 99px; padding: .25rem .8rem; cursor: pointer }
nav button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--card) }
nav output { color: var(--quiet); font-size: .87rem; margin-left: .25rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem;
  margin: 0 0 .9rem }
.warn { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: .6rem .8rem; margin: .6rem 0;
  font-size: .87rem } .warn ul { margin: 0; padding-left: 1.1rem }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .5rem 1rem;
  margin: .6rem 0 0 }
.facts .long { grid-column: 1 / -1 }
dt { color: var(--quiet); font-size: .78rem } dd { margin: 0; white-space: pre-wrap }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .9rem 1.2rem;
  margin-top: 1rem }
.bars figure { margin: 0; max-width: 16rem } .bars b { color: var(--ink); font-weight: 600 }
.bars span, .bars b { white-space: nowrap }
.bars svg { display: block; width: 100%; height: 3.6rem; fill: var(--accent) }
.bars svg line { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke }
.bars figcaption { font-size: .78rem; color: var(--quiet); display: flex; justify-content: space-between; gap: .5rem }
.head { display: flex; flex-wrap: wrap; gap: .2rem .6rem; align-items: baseline; margin-bottom: .6rem }
.chip { font-size: .78rem; border-radius: 99px; padding: .05rem .55rem; background: var(--image);
  color: var(--image-ink) }
.body { display: flex; flex-wrap: wrap; gap: 1rem 1.4rem }
.pictures { flex: 0 1 auto; display: flex; flex-wrap: wrap; gap: .8rem; align-content: flex-start; max-width: 100% }
.pictures figure { margin: 0; max-width: 100% } .pictures svg { display: block; border-radius: 6px; height: auto;
  max-width: 100% }
.pictures figcaption { font-size: .78rem; color: var(--quiet); margin-top: .3rem; max-width: 22rem }
.under, .tile { fill: none; vector-effect: non-scaling-stroke } .under { stroke: #fff; stroke-opacity: .75;
  stroke-width: 3 }
.tile { stroke: #e0218a; stroke-width: 1.4 }
.number { fill: #e0218a; stroke: #fff; paint-order: stroke; font-weight: 700; font-family: system-ui, sans-serif }
.small image { image-rendering: pixelated }
.text { flex: 1 1 26rem; min-width: 0 }
.turn { display: grid; grid-template-columns: 5.2rem minmax(0, 1fr); gap: .1rem .8rem; padding: .35rem 0 }
.turn + .turn { border-top: 1px solid var(--line) } .role { color: var(--quiet); font-size: .87rem }
.said { white-space: pre-wrap } .said .chip { margin-right: .3rem }
.thought { white-space: pre-wrap; color: var(--quiet); font-style: italic;
  border-left: 3px solid var(--line); padding-left: .6rem; margin-bottom: .3rem }
details { margin-top: .6rem } summary { cursor: pointer; font-size: .87rem; color: var(--quiet) }
.tokens { font: 13px/1.75 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap;
  margin: .4rem 0 0; padding: .7rem .8rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--ground) }
.tokens span, .key span { border-radius: 3px; box-shadow: inset 1px 0 0 var(--card) }
.plain { color: var(--quiet) } .learnt { background: var(--learnt); color: var(--learnt-ink) }
.special { color: var(--special-ink); background: var(--special) }
.special.learnt { background: var(--learnt); color: var(--special-ink); font-weight: 700 }
.image { color: var(--image-ink); background: var(--image) }
.key { display: flex; flex-wrap: wrap; gap: .3rem .5rem; margin-top: .6rem;
  font-size: .87rem } .key span { padding: 0 .4rem }
@media (max-width: 40rem) { .turn { grid-template-columns: minmax(0, 1fr) } .text { flex-basis: 100% } }
"""

# Shows one source, or all. The choice stands in the address, so that a page can be linked to as it is seen.
SCRIPT = """
const buttons = [...document.querySelectorAll('nav button')];
const parts = [...document.querySelectorAll('main [data-source]')];
function show() {
  const chosen = decodeURIComponent((location.hash.match(/^#source=(.*)$/) || ['', ''])[1]);
  for (const button of buttons) button.setAttribute('aria-pressed', String(button.value === chosen));
  for (const part of parts) part.hidden = chosen !== '' && part.dataset.source !== chosen;
  const samples = parts.filter(part => part.matches('article') && !part.hidden).length;
  document.querySelector('nav output').textContent = samples + (samples === 1 ? ' sample' : ' samples') + ' shown';
}
for (const button of buttons)
  button.addEventListener('click', () => location.replace('#source=' + encodeURIComponent(button.value)));
addEventListener('hashchange', show);
show();
"""
