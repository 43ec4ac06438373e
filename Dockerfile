# docker build -t retinanet-tf .
# docker run --rm --gpus all -v "$PWD/runs:/app/runs" retinanet-tf python -m trainer.task --model_dir=runs/NAME ...
FROM python:3.11-slim
WORKDIR /app
# Kernels that the driver compiles at the first start (on H100 and H200) are kept on the volume of the runs.
ENV CUDA_CACHE_PATH=/app/runs/.cuda-cache CUDA_CACHE_MAXSIZE=4294967296
COPY constraints.txt .
RUN pip install --no-cache-dir --requirement constraints.txt
COPY . .
RUN pip install --no-cache-dir --no-build-isolation --no-deps --editable .
CMD ["python", "-m", "trainer.demo"]
