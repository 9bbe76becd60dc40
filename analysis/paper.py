"""The paper's own figures, to stand beside ours."""

from __future__ import annotations

# Table 1: macro-F1 and its sd over the five test sets, by (loss, growing) and embedding length. Its rows guideUMAP and
# distance are growing (4.1.2), guide2D is not.
TABLE_1: dict[tuple[str, bool], dict[int, tuple[float, float]]] = {
    ("ce", False): {2: (0.597, 0.012), 64: (0.716, 0.016), 256: (0.717, 0.026), 1024: (0.704, 0.013)},
    ("ce", True): {64: (0.722, 0.017), 256: (0.725, 0.017), 1024: (0.725, 0.018)},
    ("triplet", False): {2: (0.684, 0.017), 64: (0.706, 0.013), 256: (0.707, 0.013), 1024: (0.703, 0.012)},
    ("triplet", True): {64: (0.699, 0.018), 256: (0.699, 0.028), 1024: (0.704, 0.012)},
    ("guide2d", False): {2: (0.696, 0.013), 64: (0.701, 0.014), 256: (0.709, 0.017), 1024: (0.711, 0.013)},
    ("guide_umap", True): {64: (0.694, 0.030), 256: (0.700, 0.018), 1024: (0.696, 0.016)},
    ("distance", True): {64: (0.709, 0.014), 256: (0.704, 0.016), 1024: (0.716, 0.007)},
}
