# docker build -t lottery-ticket . && docker run --rm -v "$PWD/results:/results" lottery-ticket
# An image for CPUs. Its default command is the main job of the README; results are written to /results.
FROM python:3.12-slim
WORKDIR /lottery-ticket
COPY requirements.txt .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
COPY . .
VOLUME /results
ENTRYPOINT ["python", "main.py", "--root", "/results"]
CMD ["--prune_type", "lt", "reinit", "--prune_percent", "20", "--prune_iterations", "10", "--end_iter", "5", \
     "--valid_freq", "300it", "--pixels", "unit", "--trials", "2"]
