# A stand-in for the image tensorflow/serving, for deploy/stack_check only: the trainer's image has TensorFlow already.
# Built from an archive of tests/support, which .dockerignore keeps out of the other images.
ARG TRAINER_IMAGE=handpose-trainer
FROM ${TRAINER_IMAGE}
USER 0
COPY tests /app/tests
RUN printf '#!/bin/sh\nexec python -m tests.support.tensorflow_model_server "$@"\n' > /usr/local/bin/tensorflow_model_server \
 && chmod 755 /usr/local/bin/tensorflow_model_server
ENTRYPOINT ["tensorflow_model_server"]
CMD []
