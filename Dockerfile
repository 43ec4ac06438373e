# docker build -t retinanet-tf .                            for NVIDIA GPUs
# docker build -t retinanet-tf --build-arg GPU=0 .          without CUDA, 2 GB smaller
# mkdir -p runs && docker run --rm --gpus all --shm-size=16g --user "$(id -u)" -v "$PWD/DATA:/app/DATA:ro" \
#   -v "$PWD/runs:/app/runs" retinanet-tf python -m trainer.task --model_dir=runs/RUN ...
# Only runs can be written, so every output belongs there. NCCL needs more shared memory than a container's 64 MB.
FROM python:3.11-slim
ARG GPU=1
WORKDIR /app
COPY setup.py README.md constraints.txt ./
# The requirements make a layer of their own, which a change of the code does not rebuild; so pip finds empty modules here.
RUN mkdir -p input/conversion model trainer && touch flags.py prepare_tfrecords.py \
    && pip install --no-cache-dir --constraint constraints.txt setuptools wheel \
    && if [ "$GPU" = 0 ]; then extras=""; else extras="[and-cuda]"; fi \
    && pip install --no-cache-dir --constraint constraints.txt --no-build-isolation --editable ".$extras"
COPY . .
RUN useradd --uid 1000 trainer && mkdir -p runs demo && chmod 1777 runs demo
USER 1000
# The home folder, where Keras puts downloaded weights, and the kernels that the driver compiles at the first start on
# H100 and H200 stay with the runs.
ENV HOME=/app/runs/.home CUDA_CACHE_PATH=/app/runs/.cuda-cache CUDA_CACHE_MAXSIZE=4294967296
VOLUME /app/runs
CMD ["python", "-m", "trainer.demo", "--smoke"]
