# syntax=docker/dockerfile:1
# The web page, and every other command:
#
#   docker build -t magicedit .                          magicedit-light, on CPUs
#   docker build -t magicedit --build-arg DEVICE=cuda .  magicedit with PyTorch for CUDA; run it with --gpus all
#   docker run --rm -p 127.0.0.1:7860:7860 -e MAGICEDIT_PASSWORD magicedit
#   docker run --rm -v "$PWD:/photos" --user "$(id -u):$(id -g)" magicedit edit photo.jpg -o smile.png --au AU12=3
#
# Without the variable MAGICEDIT_PASSWORD, the page prints a random password.
ARG PYTHON=3.13
ARG DEVICE=cpu

FROM python:${PYTHON}-slim AS source
RUN python -m venv /opt/magicedit
ENV PATH=/opt/magicedit/bin:$PATH
WORKDIR /source
COPY LICENSE README.md constraints.txt pyproject.toml setup.cfg setup.py ./
COPY magicedit magicedit
COPY pipelines pipelines
COPY train train

# Pillow comes last, because gradio still asks for an older one with known faults.
FROM source AS built-cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    MAGICEDIT_LIGHT=1 pip wheel --no-deps --wheel-dir /wheels . && \
    pip install "$(echo /wheels/*.whl)[app,heic,video]" && \
    pip install --no-deps 'pillow>=13'

FROM source AS built-cuda
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt '.[app,heic,video]' && \
    pip install --no-deps 'pillow>=13'

FROM built-${DEVICE} AS built

# What MediaPipe and OpenCV load from the system; those of magicedit-light need nothing.
FROM python:${PYTHON}-slim AS system-cpu
FROM python:${PYTHON}-slim AS system-cuda
RUN apt-get update && \
    apt-get install --yes --no-install-recommends libegl1 libgl1 libgles2 libglib2.0-0 && \
    rm -rf /var/lib/apt/lists/*

FROM system-${DEVICE}
RUN useradd --create-home --uid 1000 magicedit
COPY --from=built /opt/magicedit /opt/magicedit
ENV PATH=/opt/magicedit/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /photos
EXPOSE 7860
# Any answer will do: without the password it is 401.
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import http.client as http; page = http.HTTPConnection('127.0.0.1', 7860, timeout=5); page.request('GET', '/'); exit(page.getresponse().status >= 500)"]
ENTRYPOINT ["magicedit"]
CMD ["app", "--host", "0.0.0.0"]
