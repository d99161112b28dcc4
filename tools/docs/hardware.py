"""docs/hardware.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.docs.tables import kept, table

if TYPE_CHECKING:
    from ffn_fusion.report.grid import Grid


def machine_table() -> str:
    """The machines that ``predict`` ships."""
    from ffn_fusion.latency.machines import shipped_machines
    from ffn_fusion.report.machine_grids import machines_grid

    return _grid(machines_grid(shipped_machines().values()))


def machine_sources(name: str) -> str:
    """Where a machine's constants come from."""
    from ffn_fusion.latency.machines import find_machine
    from ffn_fusion.report.machine_grids import sources_grid

    return _grid(sources_grid(find_machine(name)))


def _grid(grid: Grid) -> str:
    return table(grid.headings, grid.texts)


def hardware_results() -> str:
    """What benchmarks/hardware.py printed of the four models it fits on, from docs/results/hardware.json."""
    figures = kept("hardware")["figures"]
    columns = ("published", "fitted", "error, fitted", "error, left out", "error, nothing fitted")
    rows = []
    for name in [key.split(" | ")[0] for key in figures if key.endswith(" | error, fitted")]:
        values = [figures[f"{name} | {column}"] for column in columns]
        rows.append((name, *(f"{v:.2f}" if i < 2 else f"{v:+.1%}" for i, v in enumerate(values))))
    return table(("tokens/s", *columns), rows)


def hardware_elsewhere() -> str:
    """What it wasn't fitted on."""
    figures = kept("hardware")["figures"]
    names = {
        "H200": "Ultra-253B on 8 x H200, tokens/s",
        "fusion": "speed-up by fusion alone, 8 x H100",
        "51B / 70B throughput": "Nemotron-51B / Llama-3.1-70B, throughput a device",
        "51B throughput": "Nemotron-51B, tokens/s a device",
        "70B throughput": "Llama-3.1-70B, tokens/s a device",
        "70B, one device throughput": "the same on one device",
    }
    rows = []
    for name, what in names.items():
        stated, found = figures[f"{name} | published"], figures[f"{name} | predicted"]
        digits = 0 if stated >= 1000 else 2
        on = f" (best on {figures[f'{name} | devices']:.0f})" if f"{name} | devices" in figures else ""
        rows.append((what + on, f"{stated:,.{digits}f}", f"{found:,.{digits}f}", f"{found / stated - 1:+.1%}"))
    return table(("", "published", "predicted", "error"), rows)


def hardware_gpu_results() -> str:
    """What benchmarks/hardware_gpu.py printed on each GPU, from docs/results/hardware_gpu.json."""
    found = kept("hardware_gpu")
    rows = []
    for name in next(iter(found.values()))["figures"]:
        values = [one["figures"][name] for one in found.values()]
        rows.append((name, *(f"{v:,.0f}" if v >= 100 else f"{v:.2f}" for v in values)))
    return table(("", *found), rows)


def hardware_drafts() -> str:
    """The acceptance that the published speed with a draft implies."""
    figures = kept("hardware")["figures"]
    found = {key.split()[2]: value for key, value in figures.items() if key.startswith("draft of")}
    return table(("tokens a draft", *found), [("acceptance", *(f"{value:.2f}" for value in found.values()))])
