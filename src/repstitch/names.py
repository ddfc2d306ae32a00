"""The allowed names of methods, metrics, formats and so on. The command line lists them without importing torch."""

from typing import Literal, get_args

Method = Literal["ridge", "procrustes", "canonical", "linear", "mlp"]
Objective = Literal["match", "neighbours", "reconstruction"]
Use = Literal["query", "corpus"]
OldModel = Literal["available", "gone"]
Normalisation = Literal["unit", "none"]
VerdictWord = Literal[
    "use",
    "use as first stage",
    "probably use",
    "probably use as first stage",
    "re-embed",
    "keep the old model",
    "undecided",
    "not judged",
]

METHODS: tuple[Method, ...] = get_args(Method)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
USES: tuple[Use, ...] = get_args(Use)
OLD_MODELS: tuple[OldModel, ...] = get_args(OldModel)
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
VERDICTS: tuple[VerdictWord, ...] = get_args(VerdictWord)
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
POOLINGS = ("cls", "mean", "last", "max", "mean_sqrt_len", "weighted_mean", "gap", "none")
MODALITIES = ("image", "text", "other")
ROLES = ("query", "document", "none")
FORMATS = (".parquet", ".arrow", ".npy", ".npz")
CONVERTIBLE = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")  # formats that `repstitch convert` reads too
