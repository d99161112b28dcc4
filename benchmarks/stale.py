"""List the kept results that are older than the code they measure, and the commands that take them again.

Stale results fail nothing: taking all of them again is hours of work. ``make results-stale`` runs this.
"""

from __future__ import annotations

from sources import kept_results


def main() -> None:
    every = list(kept_results())
    stale = [kept for kept in every if kept.is_stale()]
    for kept in stale:
        part = f" ({kept.part})" if kept.part else ""
        print(f"docs/results/{kept.file}{part}, taken at {kept.commit}: {kept.command}")
    print(f"{len(stale)} of {len(every)} results are older than the code they measure")


if __name__ == "__main__":
    main()
