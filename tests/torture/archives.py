"""Archives: damaged, with members that want out of their folder, or that become a thousand times as large."""

import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.torture.cases import Trial
from tests.torture.damage import damaged

FILES = {"a/one.txt": b"one" * 100, "a/two.bin": bytes(range(256)) * 20, "three.csv": b"x,y\n1,2\n"}


def _tar(extra: Callable[[tarfile.TarFile], object] = lambda _: None, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        extra(tar)
    return buffer.getvalue()


def _zip(extra: Callable[[zipfile.ZipFile], object] = lambda _: None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        extra(archive)
    return buffer.getvalue()


def _member(kind: bytes, name: str, link: str = "", size: int = 0) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, size
        tar.addfile(info, io.BytesIO(bytes(size)))

    return add


def _outside(folder: Path, out: Path) -> list[str]:
    known = {"archive", "out"}
    return [path.name for path in folder.iterdir() if path.name not in known]


def _inside(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def of_bytes(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """A damaged archive: refused, or what comes out of it is what was put in."""
    from biomass.datasets.download import extract

    form, data = rng.choice((("tar.gz", _tar()), ("tar", _tar(mode="w")), ("zip", _zip())))
    how, bad = damaged(rng, data)
    (folder / "archive").write_bytes(bad)

    def check(_: None) -> str | None:
        found, outside = _inside(folder / "out"), _outside(folder, folder / "out")
        if outside:
            return f"{form}, {how}: {outside} is outside its folder"
        if form == "tar":  # which has no checksum over contents
            return None if len(found) <= len(FILES) + 1 else f"{form}, {how}: other files"
        return None if found == FILES else f"{form}, {how}: other files or contents than were put in, and no word"

    return Trial(f"extract a {form} with {how}", lambda: extract(folder / "archive", folder / "out"), check)


def crafted(rng: random.Random, folder: Path, kit: Path) -> Trial:
    """An archive that was built to write elsewhere, to fill the disk, or to confuse a terminal."""
    from biomass.datasets.download import extract

    far = str(folder / "escaped")
    tars: dict[str, Callable[[tarfile.TarFile], object]] = {
        "a member above": _member(tarfile.REGTYPE, "../escaped", size=9),
        "an absolute member": _member(tarfile.REGTYPE, far, size=9),
        "a link out": lambda t: (
            _member(tarfile.SYMTYPE, "link", "..")(t),
            _member(tarfile.REGTYPE, "link/escaped", size=9)(t),
        ),
        "an absolute link": _member(tarfile.SYMTYPE, "link", "/etc/passwd"),
        "a hard link": _member(tarfile.LNKTYPE, "link", "../../../etc/passwd"),
        "a device": _member(tarfile.CHRTYPE, "null"),
        "a fifo": _member(tarfile.FIFOTYPE, "fifo"),
        "an endless name": _member(tarfile.REGTYPE, "x" * 5000, size=3),
        "a deep folder": _member(tarfile.REGTYPE, "d/" * 1500 + "x", size=3),
        "a control character": _member(tarfile.REGTYPE, "a\x1b[2Jb", size=3),
        "a file for a folder": lambda t: (
            _member(tarfile.REGTYPE, "b", size=3)(t),
            _member(tarfile.REGTYPE, "b/c", size=3)(t),
        ),
        "a folder for a file": lambda t: (_member(tarfile.DIRTYPE, "three.csv")(t),),
        "a bomb": _member(tarfile.REGTYPE, "bomb", size=1_500_000_000),
        "100,000 members": lambda t: [_member(tarfile.REGTYPE, f"n/{i}")(t) for i in range(100_000)],
        "a member without a name": _member(tarfile.REGTYPE, "", size=3),
        "the folder itself": _member(tarfile.REGTYPE, ".", size=3),
    }
    zips: dict[str, Callable[[zipfile.ZipFile], object]] = {
        "a member above": lambda z: z.writestr("../escaped", b"x"),
        "an absolute member": lambda z: z.writestr(far, b"x"),
        "a member of Windows": lambda z: z.writestr("..\\escaped", b"x"),
        "a drive": lambda z: z.writestr("C:\\escaped", b"x"),
        "a control character": lambda z: z.writestr("a\x1b[2Jb", b"x"),
        "an endless name": lambda z: z.writestr("x" * 5000, b"x"),
        "a file for a folder": lambda z: (z.writestr("b", b"x"), z.writestr("b/c", b"x")),
        "the folder itself": lambda z: z.writestr(".", b"x"),
    }
    form = rng.choice(("tar.gz", "zip", "zip"))
    how = rng.choice(sorted(tars if form == "tar.gz" else zips))
    if "000" in how or "bomb" in how:
        how = how if rng.random() < 0.25 else "a link out"
    (folder / "archive").write_bytes(_tar(tars[how]) if form == "tar.gz" else _zip(zips[how]))
    may = ("a control character", "100,000 members", "a drive", "a member of Windows", "a member without a name")

    def check(_: None) -> str | None:
        outside = _outside(folder, folder / "out")
        if outside:
            return f"{form} with {how}: {outside} is outside its folder"
        odd = [path.name for path in (folder / "out").rglob("*") if not path.name.isprintable()]
        if odd:
            return f"{form}: a file is called {odd[0]!r}"
        return None if how in may else f"{form} with {how} was taken without a word"

    return Trial(f"extract a {form} with {how}", lambda: extract(folder / "archive", folder / "out"), check)
