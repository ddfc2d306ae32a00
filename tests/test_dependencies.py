import re
from pathlib import Path


def test_the_packages_work_in_one_process():
    import bentoml
    import lightning
    import timm
    import torch
    import torchvision
    import transformers

    for package in (bentoml, lightning, timm, torch, torchvision, transformers):
        assert package.__version__

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 11.0, 11.0], [20.0, 20.0, 30.0, 30.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)

    assert kept.tolist() == [0, 2]  # a compiled op, which fails if torch and torchvision do not match
    assert torch.linalg.svdvals(torch.eye(3)).tolist() == [1.0, 1.0, 1.0]


def test_constraints_contain_only_versions():
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!\-]+", line)] == []
