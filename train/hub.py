"""Sends a published model to the Hugging Face hub.

The token is the one that huggingface_hub finds: HF_TOKEN, or what `hf auth login` left.
`pushed.json` in the model's folder says what was sent where, so that a command that is
given again sends only what is not there yet. Event files of trackers stay here: they
name folders of this machine.
"""

import tempfile

import huggingface_hub

# The client's own error, of httpx or httpx2, as huggingface_hub has it.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from schemas import copies, files, manifest
from schemas.version import VERSION

MARK = "pushed.json"
_LEFT_OUT = (MARK, "runs/*", f"{files.TEMPORARY}/*")
_STALE = ("*.safetensors", "*.safetensors.index.json")
"""Of another push into the same repository: weights would be read beside ours."""


def push(output: str, repository: str, *, public: bool) -> bool:
    """Sends a model's folder, unless it is on the hub already.

    Args:
      output: the published folder, local or remote.
      repository: ORG/NAME; made where there is none.
      public: whether everybody may read it.

    Returns:
      Whether it was sent now.

    Raises:
      ConnectionError: if the hub does not take it; the model stays where it is.
    """
    digest = files.checksum(files.join(output, manifest.NAME))
    mark = files.join(output, MARK)
    wanted = {"repository": repository, "manifest": digest}
    if files.exists(mark) and wanted.items() <= dict(files.read_json(mark)).items():
        return False
    try:
        with tempfile.TemporaryDirectory() as fetched:
            commit = _send(_local(output, fetched), repository, public=public)
    except (HTTPError, OSError, ValueError) as error:
        told = " ".join([ln for ln in str(error).splitlines() if ln.strip()][:2])
        raise ConnectionError(
            f"the hub must take {repository}, but does not ({type(error).__name__}:"
            f" {told}); the model is whole in {output}: give the same command again to"
            " send it, with a token that may write there (HF_TOKEN, or hf auth login)"
        ) from error
    files.write_json(mark, {**wanted, "commit": commit})
    return True


def _local(output: str, fetched: str) -> str:
    """Returns the folder, or that which its files are fetched into."""
    if "://" not in output:
        return output
    for name in copies.below(output):
        copies.copy(files.join(output, name), files.join(fetched, name))
    return fetched


def _send(folder: str, repository: str, *, public: bool) -> str:
    """Uploads a local folder; the hub is asked for what it has first.

    Raises:
      ValueError: if the repository is there, public, and must not be.
    """
    api = huggingface_hub.HfApi(library_name="fusebeam", library_version=VERSION)
    api.create_repo(repository, private=not public, exist_ok=True)
    if not public and not api.model_info(repository).private:
        raise ValueError(
            f"{repository} must be private, it is public; pass --hub_public, or choose"
            " another name"
        )
    sent = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=f"Trained with FuseBeam {VERSION}",
        ignore_patterns=list(_LEFT_OUT),
        delete_patterns=list(_STALE),
    )
    commit: str = sent.oid
    return commit
