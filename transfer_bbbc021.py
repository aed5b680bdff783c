"""Transfer to BBBC021: profiles by a trained encoder, mechanisms of action by nearest neighbours (NSC, NSCB).

    python transfer_bbbc021.py model_path=latest dataloaders.root_dir=/where/bbbc021/is

Every key is explained in configs/transfer_bbbc021.yaml. notebooks/pybbbc.ipynb is the same, cell by cell.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from biomass import training
from biomass.config import Config, build, run_name, script
from biomass.errors import ConfigError
from biomass.evaluation import transfer
from biomass.models import Architecture, build_network
from biomass.transforms import Compose


@script("transfer_bbbc021")
def main(cfg: Config) -> float | None:
    """Encode, evaluate, draw and save; returns the NSCB of the monitored normalization and post-processing."""
    data = cfg.dataloaders
    folder = Path("runs") / run_name(cfg.run_name, "transfer_bbbc021")
    fabric = training.make_fabric(cfg.device, cfg.precision)
    transfer.check_names(cfg.normalizations, cfg.postprocessings, cfg.metric, cfg.channels)
    pairs = [(n, p) for n in cfg.normalizations for p in cfg.postprocessings]
    monitored = tuple(cfg.monitor.split("/"))
    if monitored not in pairs:
        known = ", ".join("/".join(pair) for pair in pairs) or "choices: there are none"
        raise ConfigError(f"monitor '{cfg.monitor}' is not one of this run's {known}")

    # an encoder for each normalization: one that is missing is told before the cells are cut out
    paths = {"frozen": cfg.frozen_model_path if cfg.frozen_model_path is not None else cfg.model_path}
    own = data.source.get("channels") or ("DAPI", "tubulin", "actin")
    model = (cfg.model.key, cfg.model.pretrained, cfg.seed, cfg.channels, own)
    encoders = {n: _encoder(paths.get(n, cfg.model_path), *model) for n in cfg.normalizations}
    for n, (encoder, _, key) in encoders.items():
        transfer.check_norms(encoder, [n], key)
    fields, cells = build(data.fields), build(data.source)
    for n, (encoder, channels, key) in encoders.items():
        transfer.check_choices(cells, [n], cfg.postprocessings, cfg.metric, channels)
        transfer.check_encoder(encoder, cells, channels, key)
    standardize = Compose([build(t) for t in cfg.transforms.eval])
    options = {"normalize": cfg.normalize, "batch_size": cfg.encode_batch_size}
    options |= {"num_workers": data.num_workers, "on_bad_image": data.on_bad_image}
    metric, seed, figures = cfg.metric, cfg.seed, cfg.figures
    cfg.check_all_read()

    # cells → images → wells, plate by plate; from here on the run writes
    with training.RunLogger(folder, cfg.to_dict()) as logger:
        wells = {}
        for n, (encoder, channels, _) in encoders.items():
            images = transfer.image_profiles(
                fabric, encoder, cells, folder / "plates" / n, n, transform=standardize, channels=channels, **options
            )
            wells[n] = transfer.well_profiles(images)
            transfer.write_profiles(images, folder / f"images_{n}.parquet")
            transfer.write_profiles(wells[n], folder / f"wells_{n}.parquet")
        absent = transfer.images_without_cells(fields, images)
        absent.to_csv(folder / "images_without_cells.csv", index=False)

        # wells → treatments → the table
        evaluations = {(n, p): transfer.evaluate(wells[n], p, metric) for n, p in pairs}
        for (n, p), one in evaluations.items():
            transfer.write_profiles(one.treatments, folder / f"treatments_{n}_{p}.parquet")
            logger.scalars(0, 0, {f"{n}/{p}/nsc": one.nsc.accuracy, f"{n}/{p}/nscb": one.nscb.accuracy})
        table = transfer.summarize(evaluations)
        table.to_csv(folder / "table.csv", index=False)
        (folder / "table.md").write_text(transfer.to_markdown(table) + "\n")
        transfer.predictions(evaluations).to_csv(folder / "predictions.csv", index=False)
        if figures:
            for title, figure in transfer.draw(evaluations, *monitored, seed).items():
                figure.savefig(folder / f"{title}.png", dpi=150)
        print(f"{transfer.to_markdown(table)}\n{len(absent)} of {len(fields)} images have no cells; see {folder}/")
        return evaluations[monitored].nscb.accuracy


def _encoder(
    model_path: str | None, key: str, pretrained: bool, seed: int, channels: Sequence[str] | None, own: Sequence[str]
) -> tuple[nn.Module, Sequence[str], str]:
    """The encoder of a checkpoint, or one of ImageNet or random weights, the channels that it expects, and its name."""
    if model_path is None:
        channels = own if channels is None else channels
        return build_network(Architecture(key, len(channels), ()), pretrained, seed).encoder, channels, key
    network, architecture, origin = training.load_network(training.find_checkpoint(model_path), key)
    channels = origin.get("channels", own) if channels is None else channels
    if len(channels) != architecture.in_channels:
        raise ConfigError(
            f"'{model_path}' expects {architecture.in_channels} channels, not {', '.join(channels)}; name them, in its "
            "order, in channels=[…]"
        )
    return network.encoder, channels, architecture.key


if __name__ == "__main__":
    main()
