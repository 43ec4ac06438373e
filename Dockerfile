# docker build -t retinanet-tf .                            for NVIDIA GPUs
# docker build -t retinanet-tf --build-arg GPU=0 .          without CUDA, 2 GB smaller
# docker run --rm --gpus all -v "$PWD/runs:/app/runs" retinanet-tf python -m trainer.task --model_dir=runs/NAME ...
# It runs as user 1000. Where the folder of the runs belongs to another user, add --user "$(id -u)".
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
# Downloaded weights, and the kernels that the driver compiles at the first start on H100 and H200, stay with the runs.
ENV CUDA_CACHE_PATH=/app/runs/.cuda-cache CUDA_CACHE_MAXSIZE=4294967296 KERAS_HOME=/app/runs/.keras
VOLUME /app/runs
CMD ["python", "-m", "trainer.demo", "--smoke"]
