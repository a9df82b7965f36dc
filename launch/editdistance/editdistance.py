"""Edit distance in Python, for machines where the compiled package of this name has no wheel.

seqio asks for `editdistance` to suggest names close to a misspelt one. That package has no wheel
for Python 3.13 and would need a compiler; environment.sh installs this in its place there.
"""

from collections.abc import Hashable, Sequence


def eval(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Returns the least number of insertions, deletions and replacements that turn a into b."""
    above = list(range(len(b) + 1))
    for row, left in enumerate(a, start=1):
        current = [row]
        for column, right in enumerate(b, start=1):
            replaced = above[column - 1] + (left != right)
            current.append(min(replaced, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


distance = eval
