"""Kubernetes manifests against the published schemas.

What Kubernetes itself defines is always checked, also inside of what others define. The schemas of
JobSet, PyTorchJob and RayJob are their projects' and not kept here: ``MMSCALE_CRDS`` names a folder
of their CRD files (jobset.x-k8s.io_jobsets.yaml, kubeflow.org_pytorchjobs.yaml,
ray.io_rayjobs.yaml, ray.io_rayclusters.yaml).
"""

import copy
import os
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
from conftest import ROOT
from ruamel.yaml import YAML


def read_manifests():
    found = []
    for path in sorted((ROOT / "launch").rglob("*.yaml")):
        for document in YAML(typ="safe").load_all(path.read_text()):
            if isinstance(document, dict) and "apiVersion" in document and "kind" in document:
                found.append(pytest.param(document, id=f"{path.name}-{document['kind']}"))
    return found


def templates(tree):
    """Job and pod templates anywhere inside, as objects of their own."""
    if isinstance(tree, list):
        for branch in tree:
            yield from templates(branch)
    elif isinstance(tree, dict):
        spec = tree.get("spec") or {}
        if "containers" in spec:
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
        elif "completionMode" in spec:
            yield {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": "one"},
                "spec": spec,
            }
        for branch in tree.values():
            yield from templates(branch)


@pytest.mark.parametrize("manifest", read_manifests())
def test_what_kubernetes_defines(manifest):
    group = manifest["apiVersion"].partition("/")[0]
    checked = [*([] if "." in group else [manifest]), *templates(manifest)]
    assert checked, "nothing of Kubernetes' own was found"
    for one in checked:
        kubernetes_validate.validate(one, "1.32", strict=True)


def test_a_misspelt_key_is_found():
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one"},
        "spec": {"contaners": [], "containers": []},
    }
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.32", strict=True)


def strict(schema):
    """The schema with every field it does not name refused; the API server would drop such fields
    silently.
    """
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        made["additionalProperties"] = False
    return made


def find_schema(manifest):
    """OpenAPI schema of a manifest's kind from the folder ``MMSCALE_CRDS``; skips if there is
    none.
    """
    kind, (group, version) = manifest["kind"], manifest["apiVersion"].split("/")
    folder = os.environ.get("MMSCALE_CRDS")
    for path in sorted(Path(folder).glob("*.yaml")) if folder else []:
        for crd in YAML(typ="safe").load_all(path.read_text()):
            spec = crd.get("spec", {}) if isinstance(crd, dict) else {}
            if spec.get("group") == group and spec["names"]["kind"] == kind:
                found = {one["name"]: one["schema"]["openAPIV3Schema"] for one in spec["versions"]}
                assert version in found, (
                    f"{kind}: version {version} is not published; {', '.join(found)} are"
                )
                return strict(found[version])
    pytest.skip(f"{kind} of {group}: no CRD file; set MMSCALE_CRDS to a folder that has it")


@pytest.mark.parametrize("manifest", read_manifests())
def test_what_others_define(manifest):
    if "." not in manifest["apiVersion"]:
        return  # checked above
    schema = find_schema(manifest)
    checker = jsonschema.Draft202012Validator(schema)
    assert not [
        f"{error.json_path}: {error.message}"[:300] for error in checker.iter_errors(manifest)
    ]
    broken = copy.deepcopy(manifest)
    broken["spec"]["misspelt"] = 1
    assert list(checker.iter_errors(broken)), "the schema refuses nothing"
