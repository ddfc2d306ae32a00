"""The closed sets, as plain tuples, so that the command line can list them without importing torch."""

METHODS = ("ridge", "procrustes", "canonical", "linear", "mlp")
OBJECTIVES = ("match", "neighbours", "reconstruction")
USES = ("query", "corpus")
NORMALISATIONS = ("unit", "none")
METRICS = ("mutual_knn", "cka", "cka_unbiased")
POOLINGS = ("cls", "mean", "last", "gap", "none")
MODALITIES = ("image", "text", "other")
ROLES = ("query", "document", "none")
FORMATS = (".parquet", ".arrow", ".npy", ".npz")
