// Shows the OpenAPI document with Swagger UI, whose files the service serves itself.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true });
