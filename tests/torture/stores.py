"""Packed stores and HDF5 files: damaged, crafted, or with links to what is nobody's business."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from tests.torture.cases import SECRET, Trial
from tests.torture.damage import damaged

Read = tuple[pd.DataFrame, np.ndarray]


def _all(screen: Any) -> Read:
    return screen.table, screen.read(np.arange(len(screen)))


def _open_store(path: Path) -> Read:
    from biomass.datasets.packed import load_packed

    return _all(load_packed(path))


def _open_h5(root: Path) -> Read:
    from biomass.datasets.bbbc021 import load_bbbc021

    return _all(load_bbbc021(root, fields="all"))


def _differs(was: Read, now: Read, how: str) -> str | None:
    if SECRET[:23] in now[1].tobytes():
        return f"{how}: the bytes of another file are in the pixels"
    if not was[0].astype(str).equals(now[0].astype(str)):
        return f"{how}: another table than before, and no word"
    if was[1].shape != now[1].shape or was[1].tobytes() != now[1].tobytes():
        return f"{how}: other pixels than before, and no word"
    return None


def store_bytes(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A file of a packed store is damaged."""
    shutil.copytree(kit / "store", folder / "store")
    name = rng.choice(("images.npy", "images.npy", "index.parquet", "files.parquet", "store.json"))
    file = folder / "store" / name
    how, data = damaged(rng, file.read_bytes())
    file.write_bytes(data)
    check = lambda now: _differs(_open_store(kit / "store"), now, f"{name}, {how}")  # noqa: E731
    return Trial(f"read a packed store, {name} with {how}", lambda: _open_store(folder / "store"), check)


def store_crafted(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A store whose description says something that is not so."""
    shutil.copytree(kit / "store", folder / "store")
    file = folder / "store" / "store.json"
    about = json.loads(file.read_text())
    key = rng.choice(sorted(about))
    odd: list[Any] = [
        None,
        -1,
        0,
        1 << 40,
        10**400,
        1.5,
        float("nan"),
        "",
        "x" * 10_000,
        [],
        {},
        [[]],
        True,
        "\x1b[31m",
        "../..",
    ]
    by_key: dict[str, list[Any]] = {
        "shape": [
            [2, 20, 1 << 40],
            [1 << 20, 1 << 20, 1 << 20],
            [-2, -20, 20],
            [2, 20],
            [2, 20, 20.0],
            ["2", "20", "20"],
        ],
        "dtype": ["O", "object", "<U10", "V8", "<f8", "i1", "u2,u2", ">u2", "M8[ns]", "__import__('os').getcwd()"],
        "crc32": [[0] * len(about["crc32"]), about["crc32"] * 2, about["crc32"][:-1]],
        "channels": [["DNA"], ["DNA", "DNA"], ["\x1b[2J", "b"], ["a"] * 100],
        "bad": [{"0": "is bad"}, {"999": "x"}, {"-1": "x"}, {"a": "b"}],
        "images": [1, 15, 17, 10**9, 2**63],
        "block": [0, -1, 1, 10**9],
    }
    value = rng.choice(by_key.get(key, odd) if rng.random() < 0.7 else odd)
    if rng.random() < 0.1:
        del about[key]
        value = "(left out)"
    else:
        about[key] = value
    file.write_text(json.dumps(about))
    said = f"store.json says {key}={str(value)[:60]!r}"
    harmless = key in ("origin", "fingerprint", "classes", "channels", "bad", "format")

    def check(now: Read) -> str | None:
        return None if harmless else _differs(_open_store(kit / "store"), now, said)

    return Trial(said, lambda: _open_store(folder / "store"), check)


def h5_bytes(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A file of BBBC021 is damaged."""
    shutil.copytree(kit / "h5", folder / "h5")
    file = rng.choice(sorted((folder / "h5").rglob("*.h5")))
    how, data = damaged(rng, file.read_bytes())
    file.write_bytes(data)

    def check(now: Read) -> str | None:
        pixels = now[1].astype(np.float64)
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            return f"{file.name}, {how}: pixels that are not in 0…1"
        was = _open_h5(kit / "h5")
        if not was[0].astype(str).equals(now[0].astype(str)):
            changed = [
                c
                for c in was[0]
                if c not in now[0]
                or len(was[0]) != len(now[0])
                or not was[0][c].astype(str).equals(now[0][c].astype(str))
            ]
            values = set(changed) <= {
                "concentration",
                "replicate",
                "compound",
                "moa",
                "site",
                "well",
                "plate",
                "label",
                "experiment",
                "plate_id",
                "control",
            }
            return (
                None
                if values and len(was[0]) == len(now[0])
                else f"{file.name}, {how}: another table, without {changed}"
            )
        if was[1].shape != now[1].shape:
            return f"{file.name}, {how}: images of another shape"
        return None  # HDF5 as pybbbc writes it has no checksum: pixels in range are what the file says

    return Trial(f"read BBBC021, {file.name} with {how}", lambda: _open_h5(folder / "h5"), check)


def _crafted(rng: random.Random, file: Path, secret: Path) -> str:
    """Build a file of a plate wrongly, in place; says how."""
    with h5py.File(file, "a") as h5:
        images = h5["images"][()]
        n, shape = len(images), images.shape

        def instead(name: str, make: Callable[[], object]) -> None:
            del h5[name]
            make()

        def filled(value: float) -> np.ndarray:
            changed = images.copy()
            changed[rng.randrange(n), 0, 3, 3] = value
            return changed

        whole = np.broadcast_to(np.float16(0.5), shape)
        kinds: dict[str, Callable[[], object]] = {
            "an external link": lambda: instead(
                "images", lambda: h5.__setitem__("images", h5py.ExternalLink("other.h5", "/images"))
            ),
            "an external link to itself": lambda: instead(
                "images", lambda: h5.__setitem__("images", h5py.ExternalLink(file.name, "/images"))
            ),
            "external storage": lambda: instead(
                "images",
                lambda: h5.create_dataset("images", shape, np.float16, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]),
            ),
            "external storage of wells": lambda: instead(
                "well", lambda: h5.create_dataset("well", (n,), "S3", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
            ),
            "external storage of sites": lambda: instead(
                "site", lambda: h5.create_dataset("site", (n,), "u1", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
            ),
            "a loop of soft links": lambda: instead(
                "images",
                lambda: (
                    h5.__setitem__("images", h5py.SoftLink("/more")),
                    h5.__setitem__("more", h5py.SoftLink("/images")),
                ),
            ),
            "a link to nothing": lambda: instead("images", lambda: h5.__setitem__("images", h5py.SoftLink("/nothing"))),
            "a group for images": lambda: instead("images", lambda: h5.create_group("images")),
            "a virtual dataset of itself": lambda: instead("images", lambda: _virtual(h5, file.name, shape)),
            "a virtual dataset of a secret": lambda: instead("images", lambda: _virtual(h5, str(secret), shape)),
            "not a number": lambda: instead("images", lambda: h5.create_dataset("images", data=filled(np.nan))),
            "infinite": lambda: instead("images", lambda: h5.create_dataset("images", data=filled(np.inf))),
            "above 1": lambda: instead("images", lambda: h5.create_dataset("images", data=filled(7.0))),
            "below 0": lambda: instead("images", lambda: h5.create_dataset("images", data=filled(-0.5))),
            "integers": lambda: instead(
                "images", lambda: h5.create_dataset("images", data=(images * 60000).astype("u2"))
            ),
            "text": lambda: instead("images", lambda: h5.create_dataset("images", shape, h5py.string_dtype())),
            "objects": lambda: instead(
                "images", lambda: h5.create_dataset("images", shape, h5py.special_dtype(ref=h5py.Reference))
            ),
            "structs": lambda: instead(
                "images", lambda: h5.create_dataset("images", shape, [("a", "f2"), ("b", "f2")])
            ),
            "10^9 rows": lambda: [
                instead(
                    name,
                    partial(_endless, h5, name, h5[name].shape[1:], h5[name].dtype),
                )
                for name in list(h5)
            ],
            "huge images": lambda: instead(
                "images",
                lambda: h5.create_dataset("images", (n, 3, 1 << 20, 1 << 20), np.float16, chunks=(1, 1, 64, 64)),
            ),
            "no images": lambda: h5.__delitem__("images"),
            "fewer images": lambda: instead("images", lambda: h5.create_dataset("images", data=images[:-1])),
            "no pixels": lambda: instead("images", lambda: h5.create_dataset("images", (n, 3, 0, 0), np.float16)),
            "chunks that are missing": lambda: instead(
                "images", lambda: h5.create_dataset("images", shape, np.float16, chunks=(1, 3, shape[2], shape[3]))
            ),
            "a filter that is not there": lambda: instead("images", lambda: _unknown_filter(h5, whole)),
            "wells that are numbers": lambda: instead("well", lambda: h5.create_dataset("well", data=np.arange(n))),
            "a control character": lambda: instead(
                "compound", lambda: h5.create_dataset("compound", data=["\x1b[2Jx"] * n, dtype=h5py.string_dtype())
            ),
            "two rows alike": lambda: instead(
                "well", lambda: h5.create_dataset("well", data=["B02"] * n, dtype=h5py.string_dtype())
            ),
            "site not a number": lambda: instead("site", lambda: h5.create_dataset("site", data=np.full(n, np.nan))),
        }
        kind = rng.choice(sorted(kinds))
        kinds[kind]()
    return kind


def _endless(h5: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    h5.create_dataset(name, (10**9, *shape), dtype, chunks=(1, *shape) if shape else (1000,))


def _virtual(h5: h5py.File, source: str, shape: tuple[int, ...]) -> None:
    layout = h5py.VirtualLayout(shape, np.float16)
    layout[...] = h5py.VirtualSource(source, "images", shape, np.float16)
    h5.create_virtual_dataset("images", layout)


def _unknown_filter(h5: h5py.File, whole: np.ndarray) -> None:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((1, *whole.shape[1:]))
    made.set_filter(30_000, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(h5.id, b"images", h5py.h5t.IEEE_F16LE, h5py.h5s.create_simple(whole.shape), made)


HARMLESS = ("a control character", "wells that are numbers")
"""What may be taken as it stands, as long as nothing of it reaches a terminal."""


def h5_crafted(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A file of a plate that was built to mislead."""
    shutil.copytree(kit / "h5", folder / "h5")
    (folder / "secret.bin").write_bytes(SECRET)
    file = rng.choice(sorted((folder / "h5" / "hdf5").glob("*.h5")))
    shutil.copy(file, file.with_name("other.h5"))
    how = _crafted(rng, file, folder / "secret.bin")
    alone = rng.random() < 0.3 and "virtual" not in how
    if alone:
        shutil.rmtree(folder / "alone", ignore_errors=True)
        (folder / "alone").mkdir()
        shutil.copy(file, folder / "alone" / "bbbc021.h5")
        shutil.copy(file, folder / "alone" / "other.h5")

    def check(now: Read) -> str | None:
        return None if how in HARMLESS else f"BBBC021 with {how} was read without a word"

    return Trial(
        f"read BBBC021 with {how}{' alone' * alone}", lambda: _open_h5(folder / ("alone" if alone else "h5")), check
    )


def h5ad(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """An AnnData file of profiles, damaged or with links to another file."""
    from biomass.judgement.read import read_profiles
    from tests.torture.kit import profiles

    table = profiles()
    names = [name for name in table if not name.startswith("Metadata_")]
    file, secret = folder / "p.h5ad", folder / "secret.bin"
    secret.write_bytes(SECRET)
    _write_h5ad(file, table, names)
    kind = rng.choice(("bytes", "bytes", "external", "link", "huge"))
    if kind == "bytes":
        kind, data = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    else:
        with h5py.File(file, "a") as h5:
            del h5["X"]
            if kind == "external":
                h5.create_dataset("X", (len(table), len(names)), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
            elif kind == "link":
                shutil.copy(file, folder / "other.h5ad")
                h5["X"] = h5py.ExternalLink("other.h5ad", "/X")
            else:
                h5.create_dataset("X", (10**9, len(names)), "f4", chunks=(1000, len(names)))

    def check(found: Any) -> str | None:
        if kind in ("external", "link", "huge"):
            return f"a .h5ad with {kind} was read without a word"
        return None if np.isfinite(found.features).all() else "features that are not finite, and no word"

    return Trial(f"read profiles of a .h5ad, {kind}", lambda: read_profiles(file), check)


def _write_h5ad(file: Path, table: pd.DataFrame, names: list[str]) -> None:
    with h5py.File(file, "w") as h5:
        h5.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        h5["X"] = table[names].to_numpy(np.float32)
        h5["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        about = {name: table[name] for name in table if name not in names}
        for group, index, columns in (("obs", table.index.astype(str), about), ("var", names, {})):
            part = h5.create_group(group)
            order = np.array(list(columns), dtype=h5py.string_dtype())
            part.attrs.update(
                {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": order}
            )
            for name, values in {"_index": index, **columns}.items():
                part.create_dataset(name, data=list(map(str, values)), dtype=h5py.string_dtype())
                part[name].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
