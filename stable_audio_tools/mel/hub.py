"""Datasets to huggingface.co."""

from pathlib import Path

from stable_audio_tools.core.errors import UserError


def upload_dataset(folder: str | Path, name: str) -> str:
    """Upload a folder to the dataset repository `owner/name`, made where it is not there yet -> its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=name, repo_type="dataset")
    except HFValidationError:
        raise UserError(f"--push-to-hub: expected a name of the form 'owner/dataset', got {name!r}") from None
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: not uploaded ({reason}); {folder} is complete, log in with: hf auth login, and run again"
        ) from None
    return f"https://huggingface.co/datasets/{name}"
