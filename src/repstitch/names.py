"""The closed sets of names as plain tuples, so that the command line can list them without importing torch."""

METHODS = ("ridge", "procrustes", "canonical", "linear", "mlp")
OBJECTIVES = ("match", "neighbours", "reconstruction")
USES = ("query", "corpus")
NORMALISATIONS = ("unit", "none")
METRICS = (
    "mutual_knn",
    "cycle_knn",
    "lcs_knn",
    "edit_knn",
    "cka",
    "cka_unbiased",
    "cka_rbf",
    "cknna",
    "cknna_released",
    "rsa",
    "svcca",
    "pwcca",
    "cca",
    "procrustes",
    "angular",
    "linear_r2",
)
CONCEPTS = ("means", "classifier")
POOLINGS = ("cls", "mean", "last", "gap", "none")
MODALITIES = ("image", "text", "other")
ROLES = ("query", "document", "none")
FORMATS = (".parquet", ".arrow", ".npy", ".npz")
