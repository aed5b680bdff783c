"""Supervised training on single cells: each cell is classified by the perturbation of its well.

    python train_supervised_cell.py dataloaders=simulated_cells dataloaders.sampler=plate

Every key is explained in configs/train_supervised_cell.yaml. Probe the encoder on whole wells with train_classifier.py.
"""

from biomass import training
from biomass.config import Config, build, script
from biomass.experiment import Experiment, chosen_words, compose
from biomass.loader import BatchReader, SkippedImages
from biomass.models import build_network
from biomass.norms import Method
from biomass.screen import PLATE


def method_of(cfg: Config) -> Method:
    """Where batch norm takes its statistics from: what the published keys mean, and words in their place."""
    columns = training.sampler_columns(cfg.dataloaders.sampler)
    word, by = "plate" if columns else "running", columns or PLATE
    return Method(
        word, word, by, by, cfg.dataloaders.num_plates_per_batch, cfg.dataloaders.get("num_controls")
    ).override(*chosen_words(cfg), cfg.objective.penalty == "coral")


@script("train_supervised_cell")
def main(cfg: Config) -> float | None:
    """Train, evaluate and save; returns the best value of the monitored metric."""
    data = cfg.dataloaders
    experiment = Experiment.begin(cfg, "train_supervised_cell", cfg.run_name)
    fabric = experiment.fabric

    # the cells, and where batch norm takes its statistics from
    screen, method = build(data.source), method_of(cfg)
    in_training, at_inference = method.statistics(screen)
    d_out = experiment.outputs(screen)
    splits = experiment.splits(screen, data.eval_splits, d_out)
    at_inference.check(screen, *splits)
    groups, instances = screen.groups(method.train_by), screen.groups(data.instance)
    training.check_instances(screen, instances, groups, ["train"])

    # fields of view → cells → batches of raw images
    loader = training.view_loader(
        fabric,
        screen,
        BatchReader(screen, groups, data.on_bad_image, instances),
        "train",
        by_group=method.batches_by is not None,
        mode=data.mode,
        num_img=data.num_img,
        batch_size=cfg.train_batch_size,
        max_groups=method.max_groups,
        parts=data.num_plate_parts,
        num_controls=method.num_controls or 0,
        controls=method.controls,
        seed=cfg.seed,
        num_workers=data.num_workers,
    )
    eval_reader = BatchReader(screen, screen.groups(method.eval_by), data.on_bad_image, instances)
    eval_loaders = training.evaluation_loaders(
        fabric,
        screen,
        eval_reader,
        splits,
        by_plate=at_inference.by_group,
        batch_size=cfg.eval_batch_size,
        num_workers=data.num_workers,
        shuffle=at_inference.blocks,
    )
    experiment.plan.check_monitor(eval_loaders, training.SplitEvaluation.measured)

    # network, objective, optimizer, augmentation
    architecture = experiment.architecture(screen, (d_out,))
    network = build_network(architecture, cfg.model.pretrained, cfg.seed)
    objective = experiment.classification(True, method.controls, network, groups[screen.rows("train")])
    optimized = experiment.optimize(network, len(loader), objective)
    augment, standardize = compose(cfg.transforms.train), compose(cfg.transforms.eval)
    plates = experiment.training_plates(screen, eval_reader, standardize, d_out, cfg.eval_batch_size)
    evaluate = training.SplitEvaluation(screen, eval_loaders, standardize, at_inference, plates)
    about = {"architecture": architecture.to_dict(), "classes": [*screen.classes]}
    about = experiment.settle(method_of, network, screen, loader.batches, splits, augment, **about)

    # from here on the run writes
    return experiment.train(
        optimized,
        loader=loader,
        transform=augment,
        objective=objective,
        statistics=in_training,
        skipped=SkippedImages(screen),
        evaluate=evaluate,
        about=about,
    )


if __name__ == "__main__":
    main()
