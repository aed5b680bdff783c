"""Supervised training on fields of view: vanilla batch norm, or batch effects normalization (BEN).

    python train_erm.py +method=ben dataloaders=simulated model.key=resnet18 model.pretrained=false

Every key is explained in configs/train_erm.yaml.
"""

from pathlib import Path

from biomass import training
from biomass.config import Config, build, run_name, script
from biomass.inference import Statistics
from biomass.loader import BatchReader, Loader, SkippedImages
from biomass.models import Architecture, build_network
from biomass.objectives import Classification
from biomass.samplers import PlateBatches
from biomass.screen import PLATE
from biomass.transforms import Compose


@script("train_erm")
def main(cfg: Config) -> float | None:
    """Train, evaluate and save; returns the best value of the monitored metric."""
    data, trainer = cfg.dataloaders, cfg.trainer
    name = run_name(cfg.run_name, "train_erm")
    fabric = training.make_fabric(cfg.device, trainer.precision, trainer.devices)
    checkpoints = training.Checkpoints(Path("checkpoints") / name, cfg.save_model)
    resume = checkpoints.to_resume(cfg.resume)

    # the screen, its plates, and where batch norm takes its statistics from
    screen = build(data.source)
    rows, groupby = screen.rows("train"), data.get("train_groupby")
    d_out = cfg.model.d_out if cfg.model.d_out is not None else len(screen.classes)
    training.check_labels(screen, data.eval_splits, d_out)
    groups, names = screen.groups(groupby or PLATE), screen.group_names(groupby or PLATE)
    plates, plate_names = screen.groups(data.eval_groupby), screen.group_names(data.eval_groupby)
    in_training = Statistics("batch", groupby is not None, cfg.statistics_rows, names)
    at_inference = Statistics(
        "batch" if cfg.use_train_at_eval else "running", data.eval_plate_sampler, cfg.statistics_rows, plate_names
    )

    # rows → batches of raw images
    batches = PlateBatches(
        rows,
        groups[rows] if groupby else None,
        batch_size=cfg.train_batch_size,
        max_groups=data.get("max_groups", 1),
        controls=screen.negative_controls[rows] if data.num_controls else None,
        num_controls=data.num_controls,
        seed=cfg.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    reader = BatchReader(screen, groups, data.on_bad_image)
    loader = Loader(reader, batches, data.num_workers, pin_memory=fabric.device.type == "cuda")
    eval_reader = BatchReader(screen, plates, data.on_bad_image)
    eval_loaders = training.evaluation_loaders(
        fabric, screen, eval_reader, data.eval_splits, data.eval_plate_sampler, cfg.eval_batch_size, data.num_workers
    )
    plan = training.Schedule(
        cfg.num_epochs, trainer.clip, trainer.log_every, trainer.evaluate_every, trainer.max_steps, trainer.monitor
    )
    plan.check_monitor(eval_loaders, training.SplitEvaluation.measured)

    # network, optimizer, augmentation
    architecture = Architecture(cfg.model.key, len(screen.pixels.channels), (d_out,))
    network = build_network(architecture, cfg.model.pretrained, cfg.seed)
    optimizer = training.adam(network, cfg.learning_rate, cfg.weight_decay)
    decay = training.warmup_cosine(optimizer, cfg.num_warmup_epochs * len(batches), cfg.num_epochs * len(batches))
    augment, standardize = (Compose([build(t) for t in ts]) for ts in (cfg.transforms.train, cfg.transforms.eval))
    objective = Classification(cfg.compute_train_acc)
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
        fabric, compiled, optimizer, decay, loader, augment, objective, in_training, logger, checkpoints, skipped, about
    )
    with logger:
        return training.fit(run, plan, evaluate if eval_loaders else None, resume, cfg.seed).best


if __name__ == "__main__":
    main()
