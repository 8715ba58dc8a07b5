# A worker without a GPU, which also launches jobs: prepare, fuse, and small models.
#   docker build -f deploy/dataflow/cpu.Dockerfile -t IMAGE .
FROM apache/beam_python3.11_sdk:2.77.0 AS beam

# Not Beam's image itself: what that has installed is not what constraints.txt pins.
FROM python:3.11-slim-bookworm
COPY --from=beam /opt/apache/beam /opt/apache/beam

WORKDIR /opt/fusebeam
COPY constraints.txt setup.py pyproject.toml README.md ./
COPY deploy/constraints.txt deploy/
COPY schemas schemas
COPY transforms transforms
COPY pipelines pipelines
COPY train train
# PyTorch's own index has the wheels without CUDA; they are 2 GB smaller.
RUN pip install --no-cache-dir \
      --constraint constraints.txt --constraint deploy/constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu \
      '.[train,gguf,gcp]' \
    && pip check

# For whoever does not need root, as deploy/kubernetes. Dataflow does: it mounts folders
# that belong to root, and its launcher logs to /var/log.
RUN useradd --uid 10001 --create-home fusebeam

ENTRYPOINT ["/opt/apache/beam/boot"]
