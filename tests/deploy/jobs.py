"""Flags of jobs for Dataflow, which are translated and never sent."""

from collections.abc import Callable

from apache_beam.portability.api import beam_runner_api_pb2

from pipelines import counting

IMAGE = "registry.example/fusebeam/cuda:0.1.0"


FLAGS = [
    "--runner=DataflowRunner",
    "--dry_run=True",
    "--no_auth",
    "--sdk_location=container",
    "--project=test-project",
    "--region=us-central1",
    "--temp_location=gs://some-bucket/tmp",
    "--staging_location=gs://some-bucket/staging",
    f"--sdk_container_image={IMAGE}",
]


HINTS = {
    "accelerator": (
        "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"
    ),
    "min_ram": "32GB",
    "cpu_count": "8",
    "max_active_bundles_per_worker": "1",
}


Job = beam_runner_api_pb2.Pipeline


Translate = Callable[..., Job]


def count(source: str, target: str, output: str, windows: str) -> None:
    """Sends the job that counts: alone, as no command does where nobody awaits it."""
    config = counting.CountConfig(source=source, target=target, output=output)
    counting.send(config, windows, FLAGS)
