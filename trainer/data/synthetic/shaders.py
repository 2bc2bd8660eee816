"""GLSL of the renderer: one depth pass (camera and light), one shading pass for skin, cloth and things.

Shading is in linear light, in the camera frame. Patterns are made from the rest position of the surface, so they stick
to it as it bends and need no texture files.
"""

from typing import Final

DEPTH_VERTEX: Final = """
#version 330
in vec3 in_position;
uniform mat4 clip;
out float z;
void main() {
    z = in_position.z;
    gl_Position = clip * vec4(in_position, 1.0);
}
"""

DEPTH_FRAGMENT: Final = """
#version 330
in float z;
uniform float instance;
out vec2 result;
void main() { result = vec2(z, instance); }
"""

SHADOW_FRAGMENT: Final = """
#version 330
void main() {}
"""

SHADE_VERTEX: Final = """
#version 330
in vec3 in_position;
in vec3 in_normal;
in vec3 in_rest;
in vec4 in_region;
in vec3 in_nail;
uniform mat4 clip;
out vec3 position;
out vec3 normal;
out vec3 rest;
out vec4 region;
out vec3 nail;
void main() {
    position = in_position;
    normal = in_normal;
    rest = in_rest;
    region = in_region;
    nail = in_nail;
    gl_Position = clip * vec4(in_position, 1.0);
}
"""

SHADE_FRAGMENT: Final = """
#version 330
in vec3 position;
in vec3 normal;
in vec3 rest;
in vec4 region;   // skin: palm 0..1, flush 0..1, steps along the finger 0..3, finger 0/1; body: cloth, hair
in vec3 nail;     // across -1..1, along 0..1, dorsal
uniform int material;        // 0 skin, 1 thing or cloth, 2 body, 3 textured skin
uniform vec3 base;
uniform vec3 second;
uniform vec3 palm_colour;
uniform vec3 nail_colour;
uniform vec4 surface;        // roughness, specular, bump, pattern scale (1/m)
uniform vec4 detail;         // skin: wrinkle, mottle, freckle, nail length; thing: pattern, warp, grain, -
uniform vec3 seed;
uniform vec3 ambient[9];
uniform vec3 light_direction[3];
uniform vec3 light_colour[3];
uniform float exposure;
uniform mat4 shadow_clip;
uniform float shadow_bias;
uniform sampler2DShadow shadow_map;
uniform sampler2D depth_map;
uniform sampler2D skin_texture;
uniform vec2 size;
uniform float focal;
out vec4 result;

float hash(vec3 p) {
    p = fract(p * 0.3183099 + vec3(0.71, 0.113, 0.419));
    p *= 17.0;
    return fract(p.x * p.y * p.z * (p.x + p.y + p.z));
}
float noise(vec3 p) {
    vec3 i = floor(p);
    vec3 f = fract(p);
    f = f * f * (3.0 - 2.0 * f);
    return mix(mix(mix(hash(i), hash(i + vec3(1, 0, 0)), f.x),
                   mix(hash(i + vec3(0, 1, 0)), hash(i + vec3(1, 1, 0)), f.x), f.y),
               mix(mix(hash(i + vec3(0, 0, 1)), hash(i + vec3(1, 0, 1)), f.x),
                   mix(hash(i + vec3(0, 1, 1)), hash(i + vec3(1, 1, 1)), f.x), f.y), f.z);
}
vec3 irradiance(vec3 n) {
    vec3 e = ambient[0]
        + ambient[1] * n.y + ambient[2] * n.z + ambient[3] * n.x
        + ambient[4] * n.x * n.y + ambient[5] * n.y * n.z + ambient[6] * (3.0 * n.z * n.z - 1.0)
        + ambient[7] * n.x * n.z + ambient[8] * (n.x * n.x - n.y * n.y);
    return max(e, vec3(0.0));
}
vec3 bumped(vec3 n, float height, float strength) {
    vec3 dx = dFdx(position);
    vec3 dy = dFdy(position);
    vec3 r1 = cross(dy, n);
    vec3 r2 = cross(n, dx);
    float det = dot(dx, r1);
    vec3 slope = sign(det) * (dFdx(height) * r1 + dFdy(height) * r2);
    return normalize(max(abs(det), 1e-12) * n - strength * slope);
}
float shadow() {
    vec4 c = shadow_clip * vec4(position, 1.0);
    vec3 p = c.xyz * 0.5 + 0.5;
    if (any(lessThan(p.xy, vec2(0.01))) || any(greaterThan(p.xy, vec2(0.99)))) return 1.0;
    vec2 texel = 1.1 / vec2(textureSize(shadow_map, 0));
    float limit = p.z - shadow_bias;
    float lit = texture(shadow_map, vec3(p.xy + texel * vec2(0.9, 0.4), limit));
    lit += texture(shadow_map, vec3(p.xy + texel * vec2(-0.9, -0.4), limit));
    lit += texture(shadow_map, vec3(p.xy + texel * vec2(-0.4, 0.9), limit));
    lit += texture(shadow_map, vec3(p.xy + texel * vec2(0.4, -0.9), limit));
    return lit / 4.0;
}
float openness(vec3 n) {
    // How much of the hemisphere is free, from the depth around this pixel.
    float reach = 0.022;
    float blocked = 0.0;
    for (int i = 0; i < 10; ++i) {
        float radius = reach * (0.25 + 0.75 * fract(float(i) * 0.618 + 0.25));
        float angle = float(i) * 2.39996;
        vec2 offset = vec2(cos(angle), sin(angle)) * radius * focal / position.z;
        vec2 pixel = gl_FragCoord.xy + offset;
        float z = texture(depth_map, pixel / size).r;
        vec3 there = vec3(position.xy + vec2(cos(angle), sin(angle)) * radius, z);
        vec3 to = there - position;
        float d = length(to);
        float rise = dot(n, to) / max(d, 1e-5);
        blocked += clamp(rise - 0.12, 0.0, 1.0) * smoothstep(0.07, 0.02, d);
    }
    return clamp(1.0 - 2.1 * blocked / 10.0, 0.12, 1.0);
}
float specular(vec3 n, vec3 v, vec3 l, float rough) {
    vec3 h = normalize(v + l);
    float nh = max(dot(n, h), 0.0);
    float nl = max(dot(n, l), 0.0);
    float nv = max(dot(n, v), 0.05);
    float a2 = rough * rough * rough * rough;
    float d = nh * nh * (a2 - 1.0) + 1.0;
    float k = rough * rough * 0.5;
    float g = 1.0 / ((nl * (1.0 - k) + k) * (nv * (1.0 - k) + k));
    float f = 0.04 + 0.96 * pow(1.0 - max(dot(v, h), 0.0), 5.0);
    return a2 / (3.14159 * d * d) * g * f * nl * 0.25;
}
vec3 curve(vec3 c) {
    // A soft shoulder for highlights, then the sRGB transfer.
    c = 1.0 - exp(-1.25 * max(c, 0.0));
    return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
}
float crease(float along, float at, float width) {
    float d = (along - at) / width;
    return exp(-d * d);
}

void main() {
    vec3 n = normalize(normal);
    vec3 v = -normalize(position);
    if (dot(n, v) < 0.0 && material != 0) n = -n;
    vec3 colour = base;
    float rough = surface.x;
    float shine = surface.y;
    vec3 wrap = vec3(0.0);
    float height = 0.0;
    float strength = surface.z;
    if (material == 0 || material == 3) {
        float palm = region.x;
        float fine = noise(rest * 900.0 + seed);
        float mid = noise(rest * 210.0 + seed * 1.7);
        float broad = noise(rest * 55.0 + seed * 2.3);
        if (material == 0) {
            colour = mix(base, palm_colour, palm);
            colour = mix(colour, colour * second, region.y * (0.55 + 0.45 * mid));
            colour *= 1.0 + detail.y * ((broad - 0.5) * 0.75 + (mid - 0.5) * 0.5 + (fine - 0.5) * 0.25);
            colour.gb *= 1.0 - detail.y * 0.5 * (noise(rest * 120.0 + seed * 3.1) - 0.35) * (0.4 + palm);
            float spot = smoothstep(0.80, 0.92, noise(rest * 330.0 + seed * 4.1)) * (1.0 - palm);
            colour *= 1.0 - detail.z * spot;
        } else {
            colour = texture(skin_texture, region.zw).rgb;
            colour = pow(colour, vec3(2.2)) * base;
        }
        // Lines across the joints, deeper on the inner side; fine net of wrinkles elsewhere.
        if (material == 0) {
            float along = region.z;
            float wobble = (broad - 0.5) * 0.12;
            float back = 1.0 - palm;
            float lines = region.w * (
                palm * (crease(along + wobble, 0.42, 0.035) + crease(along + wobble, 1.0, 0.03)
                        + crease(along + wobble, 1.09, 0.03) + crease(along + wobble, 2.0, 0.035))
                + back * 0.6 * (crease(along, 1.0, 0.16) + crease(along, 2.0, 0.11))
                    * (0.5 + 0.5 * sin(along * 75.0 + 6.0 * mid + 5.0 * broad)));
            float net = (noise(vec3(rest.x * 500.0, rest.y * 1300.0, rest.z * 500.0) + seed) - 0.5) * back;
            height = -lines * 0.9 + detail.x * net * 0.55 + (fine - 0.5) * 0.25 + (broad - 0.5) * detail.x * 0.8;
            colour *= 1.0 - 0.24 * clamp(lines, 0.0, 1.0) * (0.6 + detail.x * 0.4);
            // Lines of the palm.
            if (region.w < 0.5 && palm > 0.3) {
                vec2 q = rest.xy + 0.007 * (vec2(broad, noise(rest * 70.0 + seed * 5.0)) - 0.5);
                float heart = abs(q.y - 0.083 + 4.5 * (q.x + 0.02) * (q.x + 0.02) - 0.10 * (q.x + 0.03));
                float head = abs(q.y - 0.075 - 0.32 * (q.x - 0.02) + 3.0 * (q.x - 0.02) * (q.x - 0.02));
                float life = abs(length((q - vec2(0.052, 0.035)) * vec2(1.0, 0.85)) - 0.044);
                float wrist = min(abs(q.y - 0.010), abs(q.y - 0.002)) + 4.0 * max(0.0, abs(q.x) - 0.02);
                float main_line = min(min(heart + step(0.026, q.x), head + step(0.034, q.x) + step(q.x, -0.034)),
                    min(life + step(0.075, q.y) + step(0.05, q.x), wrist));
                float mark = palm * smoothstep(0.0019, 0.0001, main_line);
                height -= mark * 1.0;
                colour *= 1.0 - vec3(0.09, 0.13, 0.12) * mark;
            }
            // Nails.
            float side = abs(nail.x);
            float edge = smoothstep(1.0, 0.86, side) * smoothstep(0.0, 0.10, nail.y - 0.10 * nail.x * nail.x + 0.02)
                * smoothstep(1.0 + detail.w, 0.97 + detail.w, nail.y) * step(0.15, nail.z);
            if (edge > 0.01) {
                float moon = smoothstep(0.30, 0.18, nail.y + 0.35 * nail.x * nail.x);
                float white = smoothstep(0.88, 0.93, nail.y - 0.08 * nail.x * nail.x);
                vec3 plate = mix(nail_colour, nail_colour * 0.7 + 0.25, 0.5 * moon);
                plate = mix(plate, vec3(0.72, 0.68, 0.6) * max(base.r * 1.2, 0.5), white * 0.75);
                colour = mix(colour, plate, edge * 0.9);
                rough = mix(rough, 0.28, edge);
                shine = mix(shine, 1.3, edge);
                height *= 1.0 - edge;
            }
            float rim = smoothstep(1.22, 1.0, side) * smoothstep(0.86, 1.0, side) * step(0.0, nail.y)
                * step(nail.y, 0.9) * step(0.15, nail.z);
            colour *= 1.0 - 0.22 * rim;
        }
        n = bumped(n, height, strength);
        wrap = vec3(0.34, 0.15, 0.09);
    } else if (material == 1) {
        vec3 q = rest * surface.w;
        q += detail.y * (vec3(noise(q * 0.7 + seed), noise(q * 0.7 + seed + 9.0), noise(q * 0.7 + seed + 19.0)) - 0.5);
        float pattern = 0.0;
        int kind = int(detail.x + 0.5);
        if (kind == 1) pattern = step(0.5, fract(q.y));
        else if (kind == 2) pattern = mod(floor(q.x + 0.01) + floor(q.y) + floor(q.z + 0.01), 2.0);
        else if (kind == 3) pattern = noise(q * 1.5 + seed);
        else if (kind == 4) pattern = 0.5 * step(0.62, fract(q.x)) + 0.5 * step(0.62, fract(q.y));
        else if (kind == 5) pattern = fract(noise(vec3(q.x * 0.5, q.y * 3.0, q.z * 0.5) + seed) * 4.0);
        else if (kind == 6) pattern = smoothstep(0.28, 0.24, length(fract(q.xy) - 0.5));
        colour = mix(base, second, pattern);
        float grain = noise(rest * 1600.0 + seed) - 0.5;
        float cloth = sin(rest.x * 2600.0) * sin(rest.y * 2600.0) * 0.25;
        colour *= 1.0 + detail.z * (grain * 0.7 + cloth + (noise(rest * 90.0 + seed) - 0.5) * 0.5);
        height = detail.z * (grain + noise(rest * 110.0 + seed) * 2.2);
        n = bumped(n, height, strength);
    } else {
        vec3 cloth = second * (0.85 + 0.3 * noise(rest * 60.0 + seed));
        colour = mix(base * (0.92 + 0.16 * noise(rest * 80.0 + seed)), cloth, region.x);
        colour = mix(colour, palm_colour * (0.7 + 0.6 * noise(rest * vec3(300.0, 300.0, 40.0))), region.y);
        height = region.x * noise(rest * 35.0 + seed) * 3.0;
        n = bumped(n, height, strength * region.x);
        wrap = vec3(0.25, 0.12, 0.08) * (1.0 - region.x);
    }
    float open = openness(normalize(normal) * sign(dot(normalize(normal), v)));
    // Light that has gone through flesh keeps corners warm.
    vec3 occlusion = mix(vec3(open), pow(vec3(open), vec3(0.55, 0.95, 1.0)), step(0.01, wrap.r));
    vec3 light = irradiance(n) * occlusion;
    vec3 gloss = irradiance(reflect(-v, n)) * (0.04 + 0.5 * pow(1.0 - max(dot(n, v), 0.0), 5.0)) * open * 0.6;
    for (int i = 0; i < 3; ++i) {
        vec3 l = light_direction[i];
        float lit = i == 0 ? shadow() : mix(1.0, open, 0.7);
        float nl = dot(n, l);
        vec3 wrapped = max((vec3(nl) + wrap) / ((1.0 + wrap) * (1.0 + wrap)), 0.0);
        vec3 pass = mix(vec3(lit), pow(vec3(lit), vec3(0.6, 1.0, 1.0)), step(0.01, wrap.r));
        light += light_colour[i] * wrapped * pass;
        if (nl > 0.0) gloss += light_colour[i] * specular(n, v, l, rough) * lit;
    }
    vec3 sum = colour * light + gloss * shine;
    result = vec4(curve(sum * exposure), 1.0);
}
"""
