"""Dynamic time warping in plain Python, as FuseLLM's own code has it."""

from rapidfuzz.distance import Levenshtein


def warp(source: list[str], target: list[str]) -> list[tuple[int, int]]:
    """Pairs source with target positions, cheapest path, diagonal before source step.

    A distance is measured for each cell.
    """
    far = float("inf")
    total = [[far] * (len(target) + 1) for _ in range(len(source) + 1)]
    total[0][0] = 0.0
    for i, word in enumerate(source, 1):
        for j, other in enumerate(target, 1):
            before = min(total[i - 1][j - 1], total[i - 1][j], total[i][j - 1])
            total[i][j] = Levenshtein.distance(word, other) + before
    i, j, path = len(source), len(target), []
    while i and j:
        path.append((i - 1, j - 1))
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda step: total[step[0]][step[1]])
    return path[::-1]
