// The sliders and the button "Edit" as one component: Gradio reads and updates each component that an event names,
// which takes longer than the event. Runs once in its gr.HTML, which gives `trigger`.

const IN_SLIDER = '#sliders .me-unit input';

document.addEventListener('input', event => event.target.closest(IN_SLIDER) && trigger('input'));
for (const name of ['pointerup', 'focusout']) document.addEventListener(name, event => {
    const field = event.target.closest?.(IN_SLIDER);
    if (field && (name === 'pointerup' || field.type === 'number')) trigger('release');
});
document.addEventListener('click', event => event.target.closest('#edit') && trigger('release'));

// A finger that scrolls the page has set the slider that it began on: that goes back
let touched = null;
document.addEventListener('pointerdown', ({ target, pointerType }) => {
    const slides = pointerType === 'touch' && target.matches(`${IN_SLIDER}[type=range]`);
    touched = slides ? { slider: target, value: target.value } : null;
}, true);
document.addEventListener('pointercancel', () => {
    if (touched && touched.slider.value !== touched.value) {
        touched.slider.value = touched.value;
        for (const name of ['input', 'pointerup']) touched.slider.dispatchEvent(new Event(name, { bubbles: true }));
    }
    touched = null;
});
