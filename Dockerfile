# Trains on NVIDIA GPUs: docker build -t xtuner-plugins .   The wheels of PyTorch bring their own CUDA libraries; the
# host gives the driver (NVIDIA Container Toolkit). Without a GPU, --build-arg PYTORCH_INDEX=ADDRESS takes PyTorch's CPU
# builds from that index, which leaves out gigabytes.
FROM python:3.11-slim-bookworm

# gcc: PyTorch and Triton compile kernels while they run. git: for those who work in the container.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ git make \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    DS_BUILD_OPS=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The pinned stack has a layer of its own: an edit of the project doesn't fetch it again.
WORKDIR /opt/xtuner-plugins
COPY requirements.txt constraints.txt ./
ARG PYTORCH_INDEX=""
RUN if [ -n "$PYTORCH_INDEX" ]; then \
        grep -E '^(torch|torchvision)==' requirements.txt > torch.txt \
        && pip install --index-url "$PYTORCH_INDEX" -r torch.txt; \
    fi \
    && pip install -r requirements.txt && pip install --no-deps xtuner==0.2.0

COPY . .
RUN pip install --no-deps --no-build-isolation -e . \
    && useradd --create-home --uid 1000 user \
    && mkdir /workspace \
    && chown user:user /workspace

USER 1000:1000
WORKDIR /workspace
ENTRYPOINT ["xtp"]
CMD ["--help"]
