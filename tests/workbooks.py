"""A small Excel workbook, written as the format says (ECMA-376): the package reads these and writes none."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"


def write_workbook(path: Path, sheets: Mapping[str, Sequence[Sequence[object]]]) -> Path:
    """Write a workbook: name of each sheet → its rows, of text, numbers, and None for an empty cell."""
    numbers = range(1, len(sheets) + 1)
    entries = "".join(
        f'<sheet name="{escape(s)}" sheetId="{i}" r:id="r{i}"/>' for i, s in zip(numbers, sheets, strict=True)
    )
    targets = "".join(f'<Relationship Id="r{i}" Type="{_REL}/worksheet" Target="worksheets/{i}.xml"/>' for i in numbers)
    parts = "".join(
        f'<Override PartName="/xl/worksheets/{i}.xml" ContentType="{_TYPE}.worksheet+xml"/>' for i in numbers
    )
    files = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
        f'ContentType="{_TYPE}.sheet.main+xml"/>{parts}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="r0" '
        f'Type="{_REL}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_REL}"><sheets>{entries}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">{targets}</Relationships>',
    }
    files |= {f"xl/worksheets/{i}.xml": _sheet(rows) for i, rows in zip(numbers, sheets.values(), strict=True)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return path


def _sheet(rows: Sequence[Sequence[object]]) -> str:
    lines = []
    for i, row in enumerate(rows, 1):
        cells = []
        for j, value in enumerate(row):
            place = f"{chr(65 + j // 26 - 1) if j > 25 else ''}{chr(65 + j % 26)}{i}"
            if isinstance(value, str):
                cells.append(f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>')
            elif value is not None:
                cells.append(f'<c r="{place}"><v>{value}</v></c>')
        lines.append(f'<row r="{i}">{"".join(cells)}</row>')
    return f'<worksheet xmlns="{_MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
