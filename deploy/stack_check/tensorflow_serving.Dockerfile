# A stand-in for the image tensorflow/serving, for deploy/stack_check only: the trainer's image has TensorFlow already.
# Built from an archive of deploy/stand_in, which .dockerignore keeps out of the other images.
ARG TRAINER_IMAGE=handpose-trainer
FROM ${TRAINER_IMAGE}
USER 0
COPY deploy/stand_in /app/deploy/stand_in
RUN printf '#!/bin/sh\nexec python -m deploy.stand_in.tensorflow_model_server "$@"\n' > /usr/local/bin/tensorflow_model_server \
 && chmod 755 /usr/local/bin/tensorflow_model_server
ENTRYPOINT ["tensorflow_model_server"]
CMD []
