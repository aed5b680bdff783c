"""Supervised training on single cells: each cell is classified by the perturbation of its well.

    python train_supervised_cell.py dataloaders=simulated_cells dataloaders.sampler=plate

Every key is explained in configs/train_supervised_cell.yaml. Probe the encoder on whole wells with train_classifier.py.
"""

from pathlib import Path

from biomass import training
from biomass.config import Config, build, run_name, script
from biomass.inference import Statistics
from biomass.loader import BatchReader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.objectives import Classification
from biomass.screen import PLATE
from biomass.transforms import Compose


@script("train_supervised_cell")
def main(cfg: Config) -> float | None:
    """Train, evaluate and save; returns the best value of the monitored metric."""
    data, trainer = cfg.dataloaders, cfg.trainer
    name = run_name(cfg.run_name, "train_supervised_cell")
    fabric = training.make_fabric(cfg.device, trainer.precision, trainer.devices)
    checkpoints = training.Checkpoints(Path("checkpoints") / name, cfg.save_model)
    resume = checkpoints.to_resume(cfg.resume)

    # the cells, the plates they stand on, and where batch norm takes its statistics from
    screen = build(data.source)
    d_out = cfg.model.d_out if cfg.model.d_out is not None else len(screen.classes)
    training.check_labels(screen, data.eval_splits, d_out)
    columns = training.sampler_columns(data.sampler)
    by_group, names = columns is not None, screen.group_names(columns or PLATE)
    groups, instances = screen.groups(columns or PLATE), screen.groups(data.instance)
    training.check_instances(screen, instances, groups, ["train"])
    reader = BatchReader(screen, groups, data.on_bad_image, instances)
    in_training = Statistics("batch", by_group, "all", names)
    at_inference = Statistics("batch" if by_group else "running", by_group, "all", names)

    # fields of view → cells → batches of raw images
    loader = training.view_loader(
        fabric,
        screen,
        reader,
        "train",
        by_group=by_group,
        mode=data.mode,
        num_img=data.num_img,
        batch_size=cfg.train_batch_size,
        max_groups=data.num_plates_per_batch,
        parts=data.num_plate_parts,
        seed=cfg.seed,
        num_workers=data.num_workers,
    )
    eval_loaders = training.evaluation_loaders(
        fabric, screen, reader, data.eval_splits, by_group, cfg.eval_batch_size, data.num_workers
    )
    plan = training.Schedule(
        cfg.num_epochs, trainer.clip, trainer.log_every, trainer.evaluate_every, trainer.max_steps, trainer.monitor
    )
    plan.check_monitor(eval_loaders, training.SplitEvaluation.measured)

    # network, optimizer, augmentation
    architecture = Architecture(cfg.model.key, len(screen.pixels.channels), (d_out,))
    network = build_network(architecture, cfg.model.pretrained, cfg.seed)
    optimizer = training.adam(network, cfg.learning_rate, cfg.weight_decay)
    steps = len(loader)
    decay = training.warmup_cosine(optimizer, cfg.num_warmup_epochs * steps, cfg.num_epochs * steps)
    augment, standardize = (Compose([build(t) for t in ts]) for ts in (cfg.transforms.train, cfg.transforms.eval))
    compiled, optimizer = training.set_up(fabric, network, optimizer, trainer.compile)
    cfg.check_all_read()
    about = {"architecture": architecture.to_dict(), "channels": list(screen.pixels.channels), "config": cfg.to_dict()}
    training.check_resume(resume, about)

    # from here on the run writes
    logger = training.RunLogger(Path("runs") / name, cfg.to_dict(), resume, enabled=fabric.is_global_zero)
    skipped = SkippedImages(screen)
    evaluate = training.SplitEvaluation(
        fabric, compiled, screen, eval_loaders, standardize, at_inference, logger, skipped
    )
    run = training.Training(
        fabric,
        compiled,
        optimizer,
        decay,
        loader,
        augment,
        Classification(True),
        in_training,
        logger,
        checkpoints,
        skipped,
        about,
    )
    with logger:
        return training.fit(run, plan, evaluate if eval_loaders else None, resume, cfg.seed).best


if __name__ == "__main__":
    main()
