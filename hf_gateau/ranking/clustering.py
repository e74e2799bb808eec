"""Clusters of sentence embeddings, as CaR (Clustering and Ranking, arXiv 2402.18191) makes them: PCA, then k-means.

CaR's published settings are taken: as many principal components as hold 95% of the variance, and k = sqrt(n / 2) clusters
(`Clustering/cluster.py` of its release). scikit-learn does the work, in float64 and one thread, on rows sorted by their
values: the same rows in another order, or in another process, get the same clusters.

Shapes: n rows, D numbers an embedding.
"""

import math

import numpy as np


KEPT_VARIANCE = 0.95
NUM_STARTS = 10  # of k-means, of which the best counts; scikit-learn's default until 1.4


def default_num_clusters(num_rows: int) -> int:
    """k of CaR: the root of half the number of rows, 1 or more."""
    return max(1, int(math.sqrt(num_rows / 2)))


def clusters(embeddings_nD: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """The cluster of each row, (n,) from 0; fewer clusters than asked for where fewer embeddings differ.

    Raises:
        RuntimeError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise RuntimeError(
            "method='car' needs scikit-learn; install it with `pip install \"hf-gateau[embed]\"`."
        ) from error
    order, num_distinct = _sorted_rows(embeddings_nD)
    num_clusters = min(num_clusters, num_distinct)
    labels = np.zeros(len(embeddings_nD), dtype=np.int64)
    if num_clusters == 1:
        return labels
    with threadpool_limits(1):  # sums of several threads have no fixed order
        rows = embeddings_nD[order].astype(np.float64)
        rows = PCA(KEPT_VARIANCE, svd_solver="full", random_state=seed).fit_transform(rows)
        labels[order] = KMeans(num_clusters, n_init=NUM_STARTS, random_state=seed).fit_predict(rows)
    return labels


def _sorted_rows(embeddings_nD: np.ndarray) -> tuple[np.ndarray, int]:
    """Places of the rows sorted by their bytes, and how many differ."""
    rows = np.ascontiguousarray(embeddings_nD + 0.0)  # no -0.0
    whole = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    order = np.argsort(whole, kind="stable")
    return order, 1 + int((rows[order][1:] != rows[order][:-1]).any(axis=1).sum())


def first_of_each(labels: np.ndarray, order: np.ndarray, num_each: int) -> np.ndarray:
    """Which rows are among the first `num_each` of their cluster in an order of rows; (n,) bool."""
    taken = np.zeros(len(labels), dtype=bool)
    by_cluster = order[np.argsort(labels[order], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[by_cluster], prepend=-1))
    place = np.arange(len(labels)) - np.repeat(starts, np.diff(np.append(starts, len(labels))))
    taken[by_cluster[place < num_each]] = True
    return taken
