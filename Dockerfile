# An image that runs the book: every chapter at its smoke profile (the main job, `make run`).
#
#     docker build -t nas-workbook .
#     docker run --rm nas-workbook                                  # run all chapters
#     docker run --rm nas-workbook make test                        # run the tests
#     docker run --rm -p 8888:8888 nas-workbook \
#         .venv/bin/nas-workbook lab -- --ip=0.0.0.0 --allow-root --no-browser
#
# Packages have the tested versions of requirements.lock; PyTorch is the build for CPUs.
FROM python:3.11-slim

# make for the two commands; Chromium for the browser tests of the views, which skip without it
RUN apt-get update \
    && apt-get install -y --no-install-recommends make chromium \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /book

# Packages first: they change less often than the book, so that rebuilding it takes seconds.
COPY requirements.lock ./
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
       -r requirements.lock

COPY pyproject.toml README.md LICENSE Makefile conftest.py environment.yml ./
COPY nas_core nas_core
COPY notebooks notebooks
COPY benchmarks benchmarks
COPY tests tests
COPY data data
RUN make install

ENV OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
CMD ["make", "run"]
