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

    assert kept.tolist() == [0, 2]  # a compiled op, which fails where torch and torchvision do not fit
    assert torch.linalg.svdvals(torch.eye(3)).tolist() == [1.0, 1.0, 1.0]
