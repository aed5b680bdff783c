"""Supervised training on fields of view: vanilla batch norm, or batch effects normalization (BEN).

    python train_erm.py +method=ben dataloaders=simulated model.key=resnet18 model.pretrained=false

Every key is explained in configs/train_erm.yaml.
"""

from biomass import training
from biomass.config import Config, build, script
from biomass.experiment import Experiment, chosen_words, compose
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.models import build_network
from biomass.norms import Method
from biomass.samplers import PlateBatches
from biomass.screen import PLATE


def method_of(cfg: Config) -> Method:
    """Where batch norm takes its statistics from: what the published keys mean, and words in their place."""
    data, word = cfg.dataloaders, {"all": "plate"}.get(cfg.statistics_rows, cfg.statistics_rows)
    by_plate, groupby = word if data.eval_plate_sampler else "batch", data.get("train_groupby")
    return Method(
        train=word if groupby else "running",
        eval=by_plate if cfg.use_train_at_eval else "running",
        train_by=tuple(groupby or PLATE),
        eval_by=tuple(data.eval_groupby),
        max_groups=data.get("max_groups", 1),
        num_controls=data.num_controls,
    ).override(*chosen_words(cfg), cfg.objective.penalty == "coral")


@script("train_erm")
def main(cfg: Config) -> float | None:
    """Train, evaluate and save; returns the best value of the monitored metric."""
    experiment = Experiment.begin(cfg, "train_erm", cfg.run_name)
    data, fabric = cfg.dataloaders, experiment.fabric

    # the screen, and where batch norm takes its statistics from
    screen, method = build(data.source), method_of(cfg)
    screen = screen.with_shuffled_labels("train", cfg.seed) if cfg.shuffle_labels else screen
    rows, groups = screen.rows("train"), screen.groups(method.train_by)
    in_training, at_inference = method.statistics(screen)
    d_out = experiment.outputs(screen)
    splits = experiment.splits(screen, data.eval_splits, d_out)
    at_inference.check(screen, *splits)

    # rows → batches of raw images
    batches = PlateBatches(
        rows,
        groups[rows] if method.batches_by else None,
        batch_size=cfg.train_batch_size,
        max_groups=method.max_groups,
        controls=screen.reference(method.controls)[rows],
        num_controls=method.num_controls or 0,
        seed=cfg.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    reader = BatchReader(screen, groups, data.on_bad_image)
    loader = Loader(reader, batches, data.num_workers, pin_memory=fabric.device.type == "cuda")
    eval_reader = BatchReader(screen, screen.groups(method.eval_by), data.on_bad_image)
    eval_loaders = training.evaluation_loaders(
        fabric,
        screen,
        eval_reader,
        splits,
        by_plate=data.eval_plate_sampler or at_inference.by_group,
        batch_size=cfg.eval_batch_size,
        num_workers=data.num_workers,
        shuffle=at_inference.blocks,
    )
    experiment.plan.check_monitor(eval_loaders, training.SplitEvaluation.measured)

    # network, objective, optimizer, augmentation
    architecture = experiment.architecture(screen, (d_out,))
    network = build_network(architecture, cfg.model.pretrained, cfg.seed)
    objective = experiment.classification(cfg.compute_train_acc, method.controls, network, groups[rows])
    optimized = experiment.optimize(network, len(batches), objective)
    augment, standardize = compose(cfg.transforms.train), compose(cfg.transforms.eval)
    plates = experiment.training_plates(screen, eval_reader, standardize, d_out, cfg.eval_batch_size)
    evaluate = training.SplitEvaluation(screen, eval_loaders, standardize, at_inference, plates)
    about = {"architecture": architecture.to_dict(), "classes": [*screen.classes]}
    about = experiment.settle(method_of, network, screen, batches, splits, augment, **about)

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
