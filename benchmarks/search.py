"""How long a search takes to be proven optimal: made-up tables of large models, on one core.

80 x 54: Llama-70B's 80 blocks with Puzzle's 54 choices each, 6 attentions times 9 FFNs. 126 x 54: Llama-405B's blocks
with as many choices and 500 that span 2 to 6 blocks. Costs follow from the sizes (weights and KV cache read, launches),
with 3 % of noise for each shape; scores are log-normal, larger where more is taken away, with 20 % of noise. Budgets:
0.7 of the parent's latency; that and 0.7 of its memory; those and 0.75 of its time to first token. Figures are the
median and the longest of a few seeds, in seconds of processor time, so that a busy machine matters little. tables:
126 x 54 from CSV files. With ``--cbc PYTHON``, an interpreter that has PuLP, CBC solves the same models to the same
gap, with a limit of 60 s each as in NVIDIA's search.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from common import finish_parts, parts_parser

from ffn_fusion.blueprint import PARTS as SUB_BLOCKS
from ffn_fusion.blueprint.choices import Costs
from ffn_fusion.search.candidates import Candidate, Candidates, Cell, Scenario, Seconds, read_tables
from ffn_fusion.search.problem import Problem, make_problem
from ffn_fusion.search.settings import SearchSettings
from ffn_fusion.search.table import CostRow, Key, ScoreRow, write_costs, write_scores

AT = Scenario(32, 2048)
ATTENTION = {"kept": 8, "4 KV heads": 4, "2 KV heads": 2, "1 KV head": 1, "linear": 0, "none": -1}
FFN = {
    "kept": 1.0,
    "87%": 0.87,
    "75%": 0.75,
    "50%": 0.5,
    "25%": 0.25,
    "20%": 0.2,
    "10%": 0.1,
    "linear": 0.0,
    "none": -1,
}
WIDTH, HIDDEN, HEADS, HEAD_DIM = 28_672, 8_192, 64, 128
BANDWIDTH, FLOPS, LAUNCH = 3e12, 5e14, 5e-6  # of one GPU, and seconds for each sub-block
BUDGETS = {
    "latency": {"max_latency": "0.7x"},
    "and memory": {"max_latency": "0.7x", "max_memory": "0.7x"},
    "and first token": {"max_latency": "0.7x", "max_memory": "0.7x", "max_first_token": "0.75x"},
}
GOALS = {"80 x 54": 2.0, "126 x 54 + 500": 10.0}
_CBC = """
import json, resource, sys, pulp
m = json.load(open(sys.argv[1]))
p = pulp.LpProblem("search", pulp.LpMinimize)
x = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(len(m["scores"]))]
p += pulp.lpSum(s * v for s, v in zip(m["scores"], x))
for places, coefficients, low, high in m["rows"]:
    total = pulp.lpSum(c * x[i] for i, c in zip(places, coefficients))
    p += (total == high) if low == high else (total <= high)
p.solve(pulp.PULP_CBC_CMD(msg=False, timeLimit=60, gapRel=0, threads=1))
score = sum(s for s, v in zip(m["scores"], x) if (v.value() or 0) > 0.5)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": used.ru_utime + used.ru_stime, "score": score}))
"""


def _attention(heads: int) -> tuple[int, int]:
    """Parameters, and KV bytes a token."""
    if heads < 0:
        return 0, 0
    kv = heads * HEAD_DIM
    return 2 * HIDDEN * HEADS * HEAD_DIM + 2 * HIDDEN * kv if heads else HIDDEN * HIDDEN, 4 * kv


def _ffn(share: float) -> tuple[int, int]:
    return 0 if share < 0 else int(3 * share * WIDTH) * HIDDEN if share else HIDDEN * HIDDEN, 0


def _cost(sizes: list[tuple[int, int]], noise: float) -> tuple[Costs, dict[Scenario, Seconds]]:
    parameters, kv, steps = sum(p for p, _ in sizes), sum(k for _, k in sizes), sum(p > 0 for p, _ in sizes)
    read = 2 * parameters + AT.batch * AT.context * kv
    decode = (read / BANDWIDTH + steps * LAUNCH) * noise
    prefill = (2 * parameters * AT.batch * AT.context / FLOPS + steps * LAUNCH) * noise
    return Costs(steps, parameters, 2 * parameters, kv), {AT: Seconds(prefill, decode)}


def _cells(first: int, last: int) -> tuple[Cell, ...]:
    return tuple((i, part) for i in range(first, last + 1) for part in SUB_BLOCKS)


def made_up(blocks: int, spans: int, seed: int) -> Candidates:
    """The candidates of one seed."""
    random = np.random.default_rng(seed)
    noise = {(a, f): random.uniform(0.97, 1.03) for a in ATTENTION for f in FFN}
    rows = []
    for i in range(blocks):
        hard_a, hard_f = random.lognormal(-4, 1, 2)
        for (a, heads), (f, share) in ((one, other) for one in ATTENTION.items() for other in FFN.items()):
            word = "kept" if a == f == "kept" else f"attention {a}, ffn {f}"
            gone = hard_a * (1 - (heads + 1) / 9) ** 1.5, hard_f * (1 - max(share, -0.02)) ** 1.5
            score = 0.0 if word == "kept" else sum(gone) * random.uniform(0.8, 1.2)
            costs, seconds = _cost([_attention(heads), _ffn(share)], noise[a, f])
            cells = _cells(i, i)
            rows.append(Candidate(Key(i, i, "block", word), cells, score, score / 10, costs, seconds))
    for n in range(spans):
        count = int(random.integers(2, 7))
        first = int(random.integers(0, blocks - count + 1))
        costs, seconds = _cost([_ffn(float(count))], random.uniform(0.97, 1.03))
        cells = _cells(first, first + count - 1)
        score = float(random.lognormal(-3.5, 1)) * count
        key = Key(first, first + count - 1, "block", f"fused {n}")
        rows.append(Candidate(key, cells, score, score / 10, costs, seconds))
    known = frozenset({"parameters", "weight_bytes", "kv_bytes", "steps", "prefill_seconds", "decode_seconds"})
    rest, rest_seconds = _cost([(2 * 128_256 * HIDDEN, 0)], 1.0)
    return Candidates(blocks, tuple(rows), known, rest, rest_seconds)


@dataclass(frozen=True)
class SearchBench:
    """Sizes and where to work. ``cbc``: a Python that has PuLP."""

    folder: Path
    shrink: int
    seeds: int
    cbc: str | None

    def blocks_80(self) -> Mapping[str, float]:
        return dict(self._solved(80 // self.shrink, 0))

    def blocks_126(self) -> Mapping[str, float]:
        return dict(self._solved(126 // self.shrink, 500 // self.shrink))

    def tables(self) -> Mapping[str, float]:
        """Read and joined from CSV files."""
        of = made_up(126 // self.shrink, 500 // self.shrink, 0)
        scores, costs = self.folder / "scores.csv", self.folder / "costs.csv"
        write_scores(scores, [ScoreRow(**row.key._asdict(), score=row.score) for row in of.rows])
        write_costs(costs, [_cost_row(row) for row in of.rows])
        start = time.process_time()
        read = read_tables(scores, costs)
        assert len(read.rows) == len(of.rows)
        return {"read | seconds": time.process_time() - start}

    def _solved(self, blocks: int, spans: int) -> Iterator[tuple[str, float]]:
        for name, budgets in BUDGETS.items():
            ours, theirs, worse = [], [], 0
            for seed in range(self.seeds):
                problem = make_problem(made_up(blocks, spans, seed), SearchSettings.model_validate(budgets), AT.batch)
                start = time.process_time()
                found = problem.solve()
                ours.append(time.process_time() - start)
                assert found
                assert found.solution.optimal
                if self.cbc:
                    result = self._cbc(problem)
                    theirs.append(result["seconds"])
                    assert result["score"] >= found.score * (1 - 1e-6)
                    worse += result["score"] > found.score * (1 + 1e-6)
            yield f"{name} | median", median(ours)
            yield f"{name} | longest", max(ours)
            if theirs:
                yield f"{name} | CBC median", median(theirs)
                yield f"{name} | CBC longest", max(theirs)
                yield f"{name} | CBC not optimal", worse

    def _cbc(self, problem: Problem) -> dict[str, float]:
        programme, model = problem.programme, self.folder / "model.json"
        rows = [
            (row.columns.tolist(), (row.coefficients / row.scale).tolist(), row.low / row.scale, row.high / row.scale)
            for row in (*programme.cover, *programme.rows)
        ]
        model.write_text(json.dumps({"scores": programme.scores.tolist(), "rows": rows}))
        assert self.cbc
        done = subprocess.run([self.cbc, "-c", _CBC, str(model)], capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def _cost_row(row: Candidate) -> CostRow:
    return CostRow(
        **row.key._asdict(),
        **vars(row.costs),
        batch=AT.batch,
        context=AT.context,
        prefill_seconds=row.seconds[AT].prefill,
        decode_seconds=row.seconds[AT].decode,
    )


PARTS = {
    "80 x 54": SearchBench.blocks_80,
    "126 x 54 + 500": SearchBench.blocks_126,
    "tables": SearchBench.tables,
}


def goals_of(figures: dict[str, float]) -> dict[str, float]:
    """The longest solution of every budget."""
    return {
        name: GOALS[part] for name in figures if (part := name.split(" | ")[0]) in GOALS and name.endswith("| longest")
    }


def main() -> None:
    parser = parts_parser(__doc__, PARTS)
    parser.add_argument("--cbc", metavar="PYTHON", help="a Python with PuLP, whose CBC solves the same models")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    importlib.import_module("scipy.optimize")  # no part of a solution
    shrink, seeds = (10, 2) if options.quick else (1, 5)
    finish_parts("search", options, PARTS, lambda folder: SearchBench(folder, shrink, seeds, options.cbc), goals_of)


if __name__ == "__main__":
    main()
