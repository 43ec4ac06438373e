# docker build -t retinanet-tf .
# docker run --rm --gpus all -v "$PWD/runs:/app/runs" retinanet-tf python -m trainer.task --model_dir=runs/NAME ...
FROM python:3.11-slim
WORKDIR /app
COPY constraints.txt .
RUN pip install --no-cache-dir --requirement constraints.txt
COPY . .
RUN pip install --no-cache-dir --no-build-isolation --no-deps --editable .
CMD ["python", "-m", "trainer.demo"]
