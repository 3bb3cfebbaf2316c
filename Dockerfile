# Build   docker build -t threshold-dqn .
#         for a machine without GPU, much smaller, add
#         --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Run     docker run --rm -it --gpus all --user "$(id -u):$(id -g)" \
#             -v "$PWD":/workspace threshold-dqn
#         (without --gpus all on the CPU; without -v on the sources copied into the image)
# Train   docker run -dit --name dqn --gpus all --user "$(id -u):$(id -g)" \
#             -v "$PWD":/workspace threshold-dqn tmux new -s train
#         docker exec -it dqn tmux attach -t train    # python DQN.py; leave with Ctrl-b d
#
# No CUDA base image: the default torch 2.13.0 wheel is built for CUDA 13.0 and brings its
# libraries. The host needs the NVIDIA container toolkit, a driver >= 580 and a GPU from Turing
# (compute capability 7.5) on. For an older driver (>= 525) or GPU build with
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.11.14-slim-bookworm
ARG TORCH_INDEX=""

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make tmux \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
COPY requirements.txt requirements-studies.txt requirements-dev.txt ./
# A "+cpu" or "+cu126" build counts as newer than the plain 2.13.0, so the extra index wins.
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements-dev.txt
COPY . .

# Any uid may run this image: it has no passwd entry and no home, so both are given here. Sources
# copied from a checkout with a strict umask would be unreadable to it, outputs unwritable.
ENV HOME=/tmp/home USER=user SHELL=/bin/bash TERM=xterm-256color LANG=C.UTF-8 PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/tmp/home/cache MPLCONFIGDIR=/tmp/home/matplotlib \
    NUMBA_CACHE_DIR=/tmp/home/numba TORCHINDUCTOR_CACHE_DIR=/tmp/home/inductor VENV=""
RUN mkdir -p /tmp/home cache data runs && chmod 1777 /tmp/home && chmod -R a+rwX /workspace
USER 1000:1000
CMD ["bash"]
