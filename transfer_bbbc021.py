"""Transfer to BBBC021: profiles by a trained encoder, mechanisms of action by nearest neighbours (NSC, NSCB).

    python transfer_bbbc021.py model_path=latest dataloaders.root_dir=/where/bbbc021/is

Every key is explained in configs/transfer_bbbc021.yaml. notebooks/pybbbc.ipynb is the same, cell by cell.
"""

from collections.abc import Sequence

from biomass import training
from biomass.config import Config, build, own_run, run_name, script
from biomass.errors import ConfigError, say
from biomass.evaluation import checks, encode, report, transfer
from biomass.experiment import chosen_words, compose
from biomass.formulas import to_csv
from biomass.models import Architecture, build_network
from biomass.norms import Method, Statistics
from biomass.screen import PLATE


@script("transfer_bbbc021")
def main(cfg: Config) -> float | None:
    """Encode, evaluate, draw and save; returns the NSCB of the monitored statistics and post-processing."""
    data, normalizations, postprocessings, metric = cfg.dataloaders, cfg.normalizations, cfg.postprocessings, cfg.metric
    folder = own_run(run_name(cfg.run_name, "transfer_bbbc021"))
    fabric = training.make_fabric(cfg.device, cfg.precision)

    # where batch norm takes its statistics from: words to compare (two have older names), or the one of +method=…
    older = {"frozen": "running", "all": "plate"}
    method = Method("running", "controls", PLATE, PLATE).override(*chosen_words(cfg))
    words = [older.get(word, word) for word in ([cfg.statistics.eval] if cfg.statistics.eval else normalizations)]
    checks.check_names(words, postprocessings, metric, cfg.channels)
    pairs = [(word, how) for word in words for how in postprocessings]
    word, _, how = (cfg.monitor or f"{words[-1]}/{postprocessings[0]}").partition("/")
    monitored = older.get(word, word), how
    if monitored not in pairs:
        raise ConfigError(f"monitor '{word}/{how}' is not one of this run's {', '.join(map('/'.join, pairs))}")

    # an encoder for each word: one that is missing is told before the cells are cut out
    plain = cfg.model_path if cfg.frozen_model_path is None else cfg.frozen_model_path
    paths = {word: plain if word == "running" else cfg.model_path for word in words}
    own = data.source.get("channels") or ("DAPI", "tubulin", "actin")
    model = (cfg.model.key, cfg.model.pretrained, cfg.seed, cfg.channels, own)
    loaded = {path: _encoder(path, *model) for path in dict.fromkeys(paths.values())}
    encoders = {word: loaded[path] for word, path in paths.items()}
    checks.check_encoders(encoders)
    cells = build(data.source)
    statistics = {word: Statistics.over(cells, word, method.eval_by, method.controls) for word in words}
    checks.check_cells(cells, encoders, statistics, postprocessings)
    calibration, other_data, transform = cfg.calibration, cfg.other_data, compose(cfg.transforms.eval)
    if "calibrated" in words:  # the moments belong to the weights of a checkpoint
        path, network = training.find_checkpoint(cfg.model_path or "null"), encoders["calibrated"].network
        training.use_calibration(network, statistics["calibrated"], path, calibration, cells, transform, (), other_data)
    options = {"transform": transform, "normalize": cfg.normalize}
    options |= {"batch_size": cfg.encode_batch_size, "num_workers": data.num_workers, "on_bad_image": data.on_bad_image}
    seed, figures = cfg.seed, cfg.figures
    cfg.check_all_read()

    # cells → images → wells, plate by plate; from here on the run writes
    with training.RunLogger(folder, cfg.to_dict()) as logger:
        wells = {}
        for word, encoder in encoders.items():
            place = folder / "plates" / word
            images = encode.image_profiles(fabric, encoder, cells, place, statistics[word], **options)
            wells[word] = transfer.well_profiles(images)
            encode.write_profiles(images, folder / f"images_{word}.parquet")
            encode.write_profiles(wells[word], folder / f"wells_{word}.parquet")
        absent = encode.images_without_cells(cells.fields or cells, images)
        logger.text("images_without_cells.csv", to_csv(absent))

        # wells → treatments → the table
        evaluations = {(word, how): transfer.evaluate(wells[word], how, metric) for word, how in pairs}
        for (word, how), one in evaluations.items():
            encode.write_profiles(one.treatments, folder / f"treatments_{word}_{how}.parquet")
            logger.scalars(0, 0, {f"{word}/{how}/nsc": one.nsc.accuracy, f"{word}/{how}/nscb": one.nscb.accuracy})
        table = report.write(evaluations, folder, monitored if figures else None, seed)
        say(f"{table}\n{len(absent)} of {len(absent) + len(images)} images have no cells; see {folder}/")
        return evaluations[monitored].nscb.accuracy


def _encoder(
    model_path: str | None, key: str, pretrained: bool, seed: int, channels: Sequence[str] | None, own: Sequence[str]
) -> encode.Encoder:
    """The encoder of a checkpoint, or one of ImageNet or random weights."""
    if model_path is None:
        network = build_network(Architecture(key, len(channels or own), ()), pretrained, seed)
        return encode.Encoder(network.encoder, channels or own, key)
    network, architecture, origin = training.load_network(training.find_checkpoint(model_path), key)
    channels = channels or origin.get("channels", own)
    if len(channels) != architecture.in_channels:
        raise ConfigError(
            f"'{model_path}' expects {architecture.in_channels} channels, not {', '.join(channels)}; name them, in its "
            "order, in channels=[…]"
        )
    return encode.Encoder(network.encoder, channels, architecture.key)


if __name__ == "__main__":
    main()
