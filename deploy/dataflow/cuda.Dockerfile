# A worker with a GPU, to score with.
#   docker build -f deploy/dataflow/cuda.Dockerfile -t IMAGE .
FROM apache/beam_python3.11_sdk:2.77.0 AS beam

# No CUDA base: PyTorch's wheels bring CUDA 13 in the versions of constraints.txt, and
# the driver is the host's, which must be of series 580 or newer.
FROM python:3.11-slim-bookworm
COPY --from=beam /opt/apache/beam /opt/apache/beam

# Triton's kernels and --compile are built where they run: a launcher in C, some in C++.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/fusebeam
COPY constraints.txt setup.py pyproject.toml README.md ./
COPY deploy/constraints.txt deploy/
COPY schemas schemas
COPY transforms transforms
COPY pipelines pipelines
COPY train train
RUN pip install --no-cache-dir \
      --constraint constraints.txt --constraint deploy/constraints.txt \
      '.[train,gguf,gcp,lora,quantize]' \
    && pip check

# Where Dataflow mounts the driver, and what other hosts are asked to mount.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# For whoever does not need root, as deploy/kubernetes. Dataflow does: it mounts folders
# that belong to root, and its launcher logs to /var/log.
RUN useradd --uid 10001 --create-home fusebeam

ENTRYPOINT ["/opt/apache/beam/boot"]
