"""A library of sub-blocks of SmolLM2-135M: what solving and training take away, how fast, and as planned or not.

methods: three blocks, each kind and width: the error left of a sub-block as surgery makes it, solved in closed form,
trained from there, and trained without the solve; and the KL to the parent of each alone. throughput: steps of training
against the same forward and backward passes in plain torch. plan: seconds that a library of those blocks took, over
those that its plan printed. large: a random Llama of 12 GB within 6 GiB of memory, one kind for each of its FFNs and
attentions, from one read of the weights.
"""

from __future__ import annotations

from common import finish_parts, parts_parser
from library_parts import PARTS, LibraryBench, goals_of


def main() -> None:
    options = parts_parser(__doc__, PARTS).parse_args()
    finish_parts("library", options, PARTS, LibraryBench.tiny if options.quick else LibraryBench.real, goals_of)


if __name__ == "__main__":
    main()
