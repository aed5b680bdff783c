"""One family of errors, which keeps what it carries."""

import ast
import pickle

from conftest import ROOT

from biomass.errors import BadImageError, did_you_mean


def test_a_bad_image_crosses_from_a_worker_with_its_row_and_advice():
    for advice in ("skip", None):
        error = pickle.loads(pickle.dumps(BadImageError("'a.png' is damaged", 3, advice)))
        assert (type(error), str(error), error.row, error.advice) == (BadImageError, "'a.png' is damaged", 3, advice)


def test_no_module_has_errors_of_its_own():
    errors = {}
    for path in (ROOT / "biomass").rglob("*.py"):
        classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        raised = [c.name for c in classes if any(ast.unparse(b).endswith(("Error", "Exception")) for b in c.bases)]
        if raised:
            errors[path.name] = raised
    assert list(errors) == ["errors.py"]
    assert len(errors["errors.py"]) > 4  # they are found


def test_a_name_that_is_near_none_gets_all_of_them_or_what_was_said():
    assert did_you_mean("x", ["plate"]) == "choose plate"
    assert did_you_mean("x", []) == ""
    assert did_you_mean("x", ["plate", "well"], "name a column") == "name a column"
