# The launcher of the Flex Templates of prepare, score and fuse: the CPU worker, and
# Google's launcher, which runs template.py with the parameters as flags.
#   docker build -f deploy/dataflow/template.Dockerfile --build-arg WORKER=IMAGE -t IMAGE .
ARG WORKER
FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00 AS launcher

FROM ${WORKER}
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY deploy/dataflow/template.py /template/template.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/template.py

ENTRYPOINT ["/opt/google/dataflow/python_template_launcher"]
